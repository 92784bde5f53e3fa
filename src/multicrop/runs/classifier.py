"""Classifier: crops, descriptions, aggregator and few-shot adapter behind scikit-learn's methods, for use in Python."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from multicrop.adapters.base import Adapter
from multicrop.adapters.selection import held_out
from multicrop.aggregators.score import Scorer
from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError
from multicrop.data.pictures import Picture, as_images
from multicrop.features import EncodedImages, encoded_groups
from multicrop.files import content_hash
from multicrop.model import MultiCropCLIP
from multicrop.runs import saved_classifier
from multicrop.runs.classifier_parts import Classes, adapter_of_run, classifier_settings, content_of, new_adapter, with_classes
from multicrop.runs.explain import explain_image
from multicrop.runs.few_shot import examples_of
from multicrop.runs.identity import run_identity
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.show.explain.explanation import Explanation

PARTS = ("encoder", "texts", "crops", "aggregator", "task", "code")  # what decides predictions without an adapter
MADE = ("_settings", "_session", "_module", "_fitted_adapter", "_adapter", "_learned_classes", "_saved")


class Classifier(ClassifierMixin, BaseEstimator):
    """Classify images by their crops and the descriptions of the classes.

    Without `fit` it classifies zero-shot. `fit` learns a few-shot adapter. Crops are keyed by an image's file name, or by its pixels where
    it comes without a file, so that a prediction does not depend on the other images.

    Args:
        classes: ``{class name: [description, ...]}``, or class names, whose descriptions ``prompt.description_set`` among the overrides
            names. None: those of the data set of `config`; or, with `fit`, the labels.
        config: An experiment file, such as the chosen.yaml of ``task=choose``, or the folder of a record. None: the defaults of
            `multicrop`, for photographs.
        model: A file of conf/model, a folder, or the id of a model on the HuggingFace hub; None: that of the configuration.
        crop: A file of conf/crop; None: that of the configuration.
        aggregator: A file of conf/aggregator; None: that of the configuration.
        adapter: The few-shot adapter of `fit`, a file of conf/adapter that learns from features.
        validation_share: Share of the images of `fit` on which the adapter's hyper-parameters are chosen; 0 leaves them as they are.
        temperature: Divides the logits before the softmax; None: that of the configuration, or 1.
        overrides: Further settings as for run.py, such as ``["crop.n_crops=32", "crop_seed=1"]``.

    Attributes:
        classes_: Class names, in the order of the columns of `predict_proba`.

    Example:
        >>> from multicrop import Classifier
        >>> classes = {"cat": ["whiskers", "pointed ears"], "dog": ["a wet nose", "hanging ears"]}
        >>> Classifier(classes, model="tiny", crop="random_k4", aggregator="dnd").predict([Image.new("RGB", (80, 60), "orange")]).shape
        (1,)
    """

    _adapter: Adapter | None = None  # of `fit` or `load`
    _learned_classes: list[str] | None = None  # of `fit`, where no classes were given
    _saved: dict[str, Any] | None = None  # class names, prompts and temperature of `load`

    def __init__(
        self,
        classes: Classes | None = None,
        *,
        config: str | Path | None = None,
        model: str | None = None,
        crop: str | None = None,
        aggregator: str | None = None,
        adapter: str = "tip_adapter",
        validation_share: float = 0.25,
        temperature: float | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.classes, self.config, self.model, self.crop, self.aggregator = classes, config, model, crop, aggregator
        self.adapter, self.validation_share, self.temperature, self.overrides = adapter, validation_share, temperature, overrides

    @classmethod
    def from_config(cls, config: str | Path, *overrides: str) -> "Classifier":
        """Make the classifier of a configuration, with its data set's classes; a few-shot adapter is fitted as its run fits it.

        Args:
            config: An experiment file, such as chosen.yaml; the folder of a record; or a folder that `save` wrote.
            *overrides: Further settings as for run.py.

        Returns:
            The classifier, ready to predict.

        Raises:
            ValueError: If there is no such configuration, or its task adapts to a stream.
        """
        if saved_classifier.is_one(Path(config)):
            return cls.load(config)
        return cls(config=config, overrides=list(overrides))

    def fit(self, images: Sequence[Picture], labels: Sequence[str]) -> "Classifier":
        """Learn the adapter on labelled images.

        Args:
            images: As for `predict`.
            labels: The class name of each image.

        Returns:
            The classifier.

        Raises:
            ValueError: If there are no images, lengths differ, a label is no class, a class has no image, or the adapter tunes the encoder.
        """
        names = [str(label) for label in np.asarray(labels, dtype=object).ravel()]
        if len(images) != len(names) or not names:
            raise ValueError(f"fit takes one label per image and at least one image, got {len(images)} images and {len(names)} labels")
        self._forget()
        if self.classes is None and self.config is None:
            self._learned_classes = sorted(set(names))
        index = {name: position for position, name in enumerate(self._class_names)}
        if unknown := sorted(set(names) - set(index)):
            raise ValueError(f"labels name {', '.join(unknown[:3])}, which is none of the classes {', '.join(list(index)[:5])}")
        targets = torch.tensor([index[name] for name in names])
        views = torch.cat([group.views for group in self._read(as_images(images))])
        with torch.no_grad():
            known = examples_of(self._session.scorer, views, targets)
            support, validation = held_out(known, share=self.validation_share, seed=self._settings["seed"])
        adapter = new_adapter(self._session, self.adapter, search=len(validation.labels) > 0)
        adapter.fit(support, validation if len(validation.labels) else support)
        self._adapter = adapter
        return self

    def predict(self, images: Sequence[Picture]) -> np.ndarray:
        """Predict classes.

        Args:
            images: RGB images as PIL images, paths or arrays (height, width, 3), uint8 or floats in 0-1.

        Returns:
            The class name of each image, shape (images).

        Raises:
            ImageError: If an image cannot be read.
        """
        return self.classes_[self.decision_function(images).argmax(1)]

    def predict_proba(self, images: Sequence[Picture]) -> Float[np.ndarray, "images classes"]:
        """Predict the probabilities of the classes: the softmax of logits / temperature; see `predict`."""
        return torch.from_numpy(self.decision_function(images)).softmax(1).numpy()

    def decision_function(self, images: Sequence[Picture]) -> Float[np.ndarray, "images classes"]:
        """Compute logits / temperature; see `predict`."""
        chosen = as_images(images)
        logits = np.zeros((len(images), len(self.classes_)))
        for group in self._read(chosen):
            logits[group.index.numpy()] = self.logits(group.views).double().numpy() / self.temperature_
        return logits

    def explain(self, image: Picture) -> Explanation:
        """Explain the class of one image: the crops, the texts and what each text adds to the margin over the second class.

        Args:
            image: One image; see `predict`.

        Returns:
            The explanation; `multicrop.show.explain.table.write_explanation` draws it.
        """
        chosen = as_images([image])
        return explain_image(self._session, chosen.ids[0], chosen.open(0), logits=self.logits, temperature=self.temperature_)

    def save(self, folder: str | Path) -> None:
        """Write the classifier to a folder: its settings, prompts and, after `fit`, the adapter, in sealed files without pickle."""
        adapter = self._fitted_adapter
        learned = None if adapter is None else (adapter.learned_tensors(), dict(adapter.selection["chosen"]))
        made = {"prompts": self._session.prompts, "classes": list(self.classes_), "temperature": self.temperature_}
        saved_classifier.write(Path(folder), self.get_params(), made, learned)

    @classmethod
    def load(cls, folder: str | Path) -> "Classifier":
        """Read a classifier that `save` wrote. It needs the model, and no data set.

        Args:
            folder: The folder.

        Returns:
            The classifier, with the same logits.

        Raises:
            ValueError: If the folder holds no classifier, or a file of it is damaged.
        """
        params, made, learned = saved_classifier.read(Path(folder))
        classifier = cls(**params)
        classifier._saved = made
        if learned is not None:
            classifier._adapter = new_adapter(classifier._session, classifier.adapter, search=False)
            classifier._adapter.restore(*learned)
        return classifier

    def set_params(self, **params: Any) -> "Classifier":
        """Set parameters; what was fitted is forgotten."""
        self._forget()
        return super().set_params(**params)

    def __sklearn_is_fitted__(self) -> bool:
        return any(given is not None for given in (self.classes, self.config, self._learned_classes, self._saved))

    @property
    def classes_(self) -> np.ndarray:
        """Class names, in the order of the columns of `predict_proba`."""
        return np.array(self._class_names, dtype=object)

    @property
    def temperature_(self) -> float:
        """What divides the logits before the softmax."""
        return float((self._saved or {}).get("temperature") or self.temperature or self._settings.config.get("temperature") or 1.0)

    @torch.inference_mode()
    def logits(self, views: Float[Tensor, "batch views dim"]) -> Float[Tensor, "batch classes"]:
        """Class logits of view features, before the temperature."""
        logits = self._session.scorer(views)
        return logits if self._fitted_adapter is None else self._fitted_adapter(views, logits)

    def groups(self, images: LabelledImages) -> Iterator[EncodedImages]:
        """Encode images, a group of neighbours at a time; an image that cannot be read is marked."""
        compute = self._settings.compute
        return encoded_groups(images, self._module, num_workers=compute.num_workers, accelerator=compute.accelerator, cut=compute.cut)

    @property
    def scorer(self) -> Scorer:
        """The aggregator with its prompts, fused with the global view."""
        return self._session.scorer

    @property
    def image_root(self) -> Path | None:
        """The folder of the configuration's data set, whose images keep their ids; None where it has none."""
        root = self._settings.config.get("dataset", {}).get("root")
        return Path(root).expanduser() if root and self.config is not None else None

    @property
    def identity(self) -> str:
        """A hash of everything that decides the predictions."""
        adapter = self._fitted_adapter
        learned = () if adapter is None else (content_of(adapter.learned_tensors()), adapter.selection["chosen"])
        return content_hash(run_identity(self._session, *PARTS).key, *learned, self.temperature_)

    @cached_property
    def _settings(self) -> Settings:
        return classifier_settings(self.config, model=self.model, crop=self.crop, aggregator=self.aggregator, overrides=self.overrides)

    @cached_property
    def _session(self) -> Session:
        session, saved = Session(self._settings), self._saved
        given = self.classes if self.classes is not None else self._learned_classes
        if saved is None and given is None and self.config is None:
            raise NotFittedError("this Classifier has no classes; pass classes={name: [description, ...]}, or fit it on labelled images")
        if saved is not None:
            return with_classes(session, saved["classes"], saved["prompts"])
        return session if given is None else with_classes(session, given)

    @property
    def _class_names(self) -> list[str]:
        return self._session.dataset.class_names

    @cached_property
    def _module(self) -> MultiCropCLIP:
        return MultiCropCLIP(self._session.encoder, self._session.sampler, seed=self._settings["crop_seed"])

    @cached_property
    def _fitted_adapter(self) -> Adapter | None:
        """The adapter that `fit` or `load` made, or that of the configuration, fitted as its run fits it."""
        if self._adapter or self._settings.task["name"] != "few_shot" or self.config is None or self._saved:
            return self._adapter
        return adapter_of_run(self._session)

    def _read(self, images: LabelledImages) -> Iterator[EncodedImages]:
        """The groups of images that all can be read."""
        for group in self.groups(images):
            for position in group.index[~group.readable].tolist():
                images.open(position)  # says why
                raise ImageError(f"{images.ids[position]} cannot be read")
            yield group

    def _forget(self) -> None:
        for name in MADE:
            self.__dict__.pop(name, None)
