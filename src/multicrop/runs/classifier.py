"""Classifier: crops, descriptions, aggregator and few-shot adapter behind scikit-learn's methods, for use in Python."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from multicrop.data.pictures import Picture, Pictures, as_images
from multicrop.runs import chosen_adapter, saved_classifier
from multicrop.runs.predictor import Classes, Predictor, classifier_settings, with_classes
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.show.explain.explanation import Explanation


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

    Example:
        >>> from multicrop import Classifier
        >>> classes = {"cat": ["whiskers", "pointed ears"], "dog": ["a wet nose", "hanging ears"]}
        >>> Classifier(classes, model="tiny", crop="random_k4", aggregator="dnd").predict([Image.new("RGB", (80, 60), "orange")]).shape
        (1,)
    """

    _learned_classes: list[str] | None = None  # of `fit`, where no classes were given

    def __init__(
        self,
        classes: Classes | None = None,
        *,
        config: str | Path | None = None,
        model: str | None = None,
        crop: str | None = None,
        aggregator: str | None = None,
        adapter: str = "tip_adapter",
        validation_share: float | int = 0.25,
        temperature: float | int | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.classes, self.config, self.model, self.crop, self.aggregator = classes, config, model, crop, aggregator
        self.adapter, self.validation_share, self.temperature, self.overrides = adapter, validation_share, temperature, overrides

    @classmethod
    def from_config(cls, config: str | Path, *overrides: str) -> "Classifier":
        """Make the classifier of a configuration, with its data set's classes; a few-shot adapter is read or fitted as its run fits it.

        Args:
            config: An experiment file, such as chosen.yaml; the folder of a record; or a folder that `save` wrote.
            *overrides: Further settings as for run.py; for a saved classifier, see `load`.

        Returns:
            The classifier, which loads its parts when it is first used.

        Raises:
            ValueError: If there is no such configuration, or its task adapts to a stream.
        """
        return cls.load(config, *overrides) if saved_classifier.is_one(Path(config)) else cls(config=config, overrides=list(overrides))

    def fit(self, images: Pictures, labels: Sequence[str]) -> "Classifier":
        """Learn the adapter on labelled images.

        Args:
            images: As for `predict`.
            labels: The class name of each image.

        Returns:
            This classifier.

        Raises:
            ValueError: If there are no images, lengths differ, a label is no class, a class has no image, or the adapter tunes the encoder.
        """
        chosen, names = as_images(images), [str(label) for label in np.asarray(labels, dtype=object).ravel()]
        if len(chosen) != len(names) or not names:
            raise ValueError(f"fit takes one label per image and at least one image, got {len(chosen)} images and {len(names)} labels")
        self._forget()
        if self.classes is None and self.config is None:
            self._learned_classes = sorted(set(names))
        predictor = Predictor(self._new_session(), temperature=self.temperature)
        predictor.learn(chosen, names, adapter=self.adapter, validation_share=self.validation_share)
        self.predictor = predictor
        return self

    def predict(self, images: Pictures) -> np.ndarray:
        """Predict classes.

        Args:
            images: RGB images as PIL images, paths or arrays (height, width, 3), uint8 or floats in 0-1.

        Returns:
            The class name of each image, shape (images).

        Raises:
            ImageError: If an image cannot be read.
        """
        return self.classes_[self.decision_function(images).argmax(1)]

    def predict_proba(self, images: Pictures) -> Float[np.ndarray, "images classes"]:
        """Predict the probabilities of the classes: the softmax of logits / temperature; raises as `predict`.

        Args:
            images: As for `predict`.

        Returns:
            Probabilities, shape (images, classes), in the order of `classes_`.
        """
        return torch.from_numpy(self.decision_function(images)).softmax(1).numpy()

    def decision_function(self, images: Pictures) -> Float[np.ndarray, "images classes"]:
        """Compute the logits of the classes, divided by the temperature; raises as `predict`.

        Args:
            images: As for `predict`.

        Returns:
            Logits / temperature, shape (images, classes), in the order of `classes_`.
        """
        return self.predictor.decisions(as_images(images))

    def explain(self, image: Picture) -> Explanation:
        """Explain the class of one image.

        Args:
            image: As one of those of `predict`.

        Returns:
            Crops, texts and what each text adds to the margin, for `multicrop.show.explain.table.write_explanation`.
        """
        chosen = as_images([image])
        return self.predictor.explain(chosen.ids[0], chosen.open(0))

    def save(self, folder: str | Path) -> None:
        """Write the classifier to a folder: its settings, prompts and, after `fit`, the adapter, in sealed files without pickle.

        Args:
            folder: The folder, which is made.
        """
        saved_classifier.write(Path(folder), self.get_params(), self.predictor)

    @classmethod
    def load(cls, folder: str | Path, *overrides: str) -> "Classifier":
        """Read a classifier that `save` wrote; it needs the model, and no data set.

        Args:
            folder: The folder.
            *overrides: Settings of ``trainer``, ``engine`` and ``paths``; the others decide predictions and cannot be changed.

        Returns:
            The classifier with its adapter, if it had been fitted.

        Raises:
            ValueError: If the folder holds no classifier, a file of it is damaged, or another setting is passed.
        """
        params, made, learned = saved_classifier.read(Path(folder), overrides)
        classifier = cls(**params)
        classifier.predictor = saved_classifier.restored(Session(classifier._new_settings()), made, classifier.adapter, learned)
        return classifier

    def set_params(self, **params: Any) -> "Classifier":
        """Set parameters; what was fitted is forgotten.

        Args:
            **params: Parameters of the constructor.

        Returns:
            This classifier.
        """
        self._forget()
        return super().set_params(**params)

    def __sklearn_is_fitted__(self) -> bool:
        return "predictor" in vars(self) or self.classes is not None or self.config is not None

    @property
    def classes_(self) -> np.ndarray:
        """Class names, in the order of the columns of `predict_proba`."""
        return np.array(self.predictor.class_names, dtype=object)

    @cached_property
    def predictor(self) -> Predictor:
        """What classifies; without `fit`, a few-shot configuration's adapter is read where one was saved, else fitted as by its run."""
        session = self._new_session()
        return Predictor(session, chosen_adapter.of_configuration(session, self.config), self.temperature)

    def _new_settings(self) -> Settings:
        return classifier_settings(self.config, model=self.model, crop=self.crop, aggregator=self.aggregator, overrides=self.overrides)

    def _new_session(self) -> Session:
        session, given = Session(self._new_settings()), self.classes if self.classes is not None else self._learned_classes
        if given is None and self.config is None:
            raise NotFittedError("this Classifier has no classes; pass classes={name: [description, ...]}, or fit it on labelled images")
        return session if given is None else with_classes(session, given)

    def _forget(self) -> None:
        for name in ("predictor", "_learned_classes"):
            self.__dict__.pop(name, None)
