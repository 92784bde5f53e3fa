"""Predictor: a configuration outside of run.py that classifies images, with a fitted adapter where there is one."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from multicrop.adapters.base import Adapter, AnyAdapter
from multicrop.adapters.selection import held_out
from multicrop.config import CONF
from multicrop.config.entry_points import components
from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.images import ImageError
from multicrop.data.pictures import as_images
from multicrop.encoder.precisions import DTYPES
from multicrop.features import EncodedImages, count_views, encoded_groups
from multicrop.features.view_dataset import group_size
from multicrop.files import content_hash
from multicrop.model import MultiCropCLIP
from multicrop.runs.explain import explain_image
from multicrop.runs.few_shot import SupportedTask, build, examples_of
from multicrop.runs.identity import run_identity
from multicrop.runs.kept_logits import check_numbers
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings, composed
from multicrop.show.explain.explanation import Explanation

Classes = Mapping[str, Sequence[str]] | Sequence[str]
TASKS = ("zero_shot", "few_shot")  # tasks in which the class of an image does not depend on the others
PARTS = ("encoder", "texts", "crops", "aggregator", "task", "code")  # what decides predictions without an adapter


class Predictor:
    """Class logits of images.

    Args:
        session: The parts of the run.
        adapter: A fitted adapter of features; None: the aggregator predicts.
        temperature: Divides the logits before the softmax; None: that of the configuration, or 1.

    Raises:
        ValueError: If the temperature is not above 0.

    Attributes:
        session: See above.
        adapter: See above.
        temperature: What divides the logits.
        class_names: The classes, in the order of the logits.
        scorer: The aggregator with its prompts, fused with the global view.
        root: The folder of the configuration's data set, whose images keep their ids; None where it has none.
    """

    def __init__(self, session: Session, adapter: Adapter | None = None, temperature: float | int | None = None) -> None:
        self.session, self.adapter = session, adapter
        configured = session.settings.config.get("temperature")  # of task=choose
        self.temperature = float(temperature if temperature is not None else configured if configured is not None else 1.0)
        if not self.temperature > 0:
            raise ValueError(f"temperature divides the logits and must be above 0, got {self.temperature}")
        self.class_names, self.scorer = session.dataset.class_names, session.scorer
        root = session.settings.config.get("dataset", {}).get("root")
        self.root = Path(root).expanduser() if root else None
        self.module = MultiCropCLIP(session.encoder, session.sampler, seed=session.settings["crop_seed"])

    @torch.inference_mode()
    def logits(self, views: Float[Tensor, "batch views dim"]) -> Float[Tensor, "batch classes"]:
        """Class logits of view features, before the temperature; raises ValueError where they are no numbers."""
        logits = self.scorer(views)
        logits = logits if self.adapter is None else self.adapter(views, logits)
        check_numbers("final", logits)
        return logits

    def groups(self, images: LabelledImages) -> Iterator[EncodedImages]:
        """Encode images, a group of neighbours at a time; an image that cannot be read is marked."""
        compute = self.session.settings.compute
        return encoded_groups(images, self.module, num_workers=compute.num_workers, accelerator=compute.accelerator, cut=compute.cut)

    def readable_groups(self, images: LabelledImages) -> Iterator[EncodedImages]:
        """Encode images, a group of neighbours at a time.

        Raises:
            ImageError: If an image cannot be read.
        """
        for group in self.groups(images):
            for position in group.index[~group.readable].tolist():
                images.open(position)  # its error says why
                raise ImageError(f"{images.ids[position]} cannot be read")
            yield group

    @property
    def group_size(self) -> int:
        """Images that `groups` encodes at a time."""
        return group_size(count_views(self.session.sampler), self.session.settings.compute.accelerator)

    def threads(self, groups: int) -> int:
        """Threads that may predict so many groups side by side; 1 where a part of the prediction is not safe in threads, or is elsewhere.

        Features are equal either way: they do not depend on the number of threads that torch's operations take.
        """
        compute, encoder = self.session.settings.compute, self.session.encoder
        alone = compute.accelerator != "cpu" or compute.num_workers or self.session.sampler.looks_at
        threads = torch.get_num_threads()
        return 1 if alone or encoder.compiled or encoder.precision not in DTYPES or groups < threads else threads

    def decisions(self, images: LabelledImages) -> Float[np.ndarray, "images classes"]:
        """Logits / temperature of images; raises ImageError if one cannot be read."""
        found = np.zeros((len(images), len(self.class_names)))
        for group in self.readable_groups(images):
            found[group.index.numpy()] = self.logits(group.views).double().numpy() / self.temperature
        return found

    def learn(self, images: LabelledImages, labels: Sequence[str], *, adapter: str, validation_share: float | int) -> None:
        """Fit an adapter on labelled images; it predicts from then on.

        Args:
            images: The images, all of which can be read.
            labels: The class name of each image.
            adapter: A file of conf/adapter; a few-shot configuration has its own.
            validation_share: Share of the images on which the adapter's hyper-parameters are chosen.

        Raises:
            ValueError: If a label is no class, a class has no image, or the adapter tunes the encoder.
        """
        index = {name: position for position, name in enumerate(self.class_names)}
        if unknown := sorted(set(labels) - set(index)):
            raise ValueError(f"labels name {', '.join(unknown[:3])}, which is none of the classes {', '.join(list(index)[:5])}")
        targets = torch.tensor([index[label] for label in labels])
        views = torch.cat([group.views for group in self.readable_groups(images)])
        with torch.no_grad():
            known = examples_of(self.scorer, views, targets)
            support, validation = held_out(known, share=validation_share, seed=self.session.settings["seed"])
        learner = new_adapter(self.session, adapter, search=len(validation.labels) > 0)
        learner.fit(support, validation if len(validation.labels) else support)
        self.adapter = learner

    def explain(self, name: str, image: Image.Image) -> Explanation:
        """Explain the class of one RGB image; its crops are keyed by the name."""
        return explain_image(self.session, name, image, logits=self.logits, temperature=self.temperature)

    @property
    def identity(self) -> str:
        """A hash of everything that decides the predictions."""
        learned: list[object] = []
        if self.adapter is not None:
            tensors = {name: value.contiguous() for name, value in self.adapter.learned_tensors().items()}
            learned = [hashlib.blake2b(save(tensors), digest_size=16).hexdigest(), self.adapter.selection["chosen"]]
        return content_hash(run_identity(self.session, *PARTS).key, *learned, self.temperature)


def classifier_settings(
    config: str | Path | None, *, model: str | None, crop: str | None, aggregator: str | None, overrides: Sequence[str]
) -> Settings:
    """The settings of a classifier.

    Args:
        config: An experiment file or the folder of a record; None: the defaults, with the prompts of ``dataset=folder``.
        model: A file of conf/model, a folder, or the id of a model on the hub; None: that of the configuration.
        crop: A file of conf/crop; None: that of the configuration.
        aggregator: A file of conf/aggregator; None: that of the configuration.
        overrides: Further settings as for run.py.

    Raises:
        ValueError: If there is no such configuration, or its task adapts to a stream.
    """
    chosen = [] if config is not None else ["dataset=folder"]
    if model:
        named = (CONF / "model" / f"{model}.yaml").is_file() or model in components("model")
        path = Path(model).expanduser()
        chosen += [f"model={model}"] if named else ["model=local", f"model.path={path if path.exists() else model}"]
    chosen += [f"{group}={name}" for group, name in (("crop", crop), ("aggregator", aggregator)) if name]
    settings = composed([*chosen, *overrides], None if config is None else Path(config))
    if settings.task["name"] not in TASKS:
        raise ValueError(
            f"a classifier predicts each image independently of others, and task={settings.task['name']} does not; take a configuration "
            "of task=zero_shot or task=few_shot, such as the chosen.yaml of task=choose"
        )
    return settings


def with_classes(session: Session, classes: Classes, prompts: list[list[str]] | None = None) -> Session:
    """The session for classes without images; their prompts are made from the descriptions where they are not given."""
    described = classes if isinstance(classes, Mapping) else {}
    none = as_images([])
    dataset = Dataset("classifier", list(classes), {name: list(texts) for name, texts in described.items()}, none, none, none)
    return session.with_classes(dataset, prompts)


def new_adapter(session: Session, name: str, *, search: bool) -> Adapter:
    """An adapter that is not fitted: that of the configuration where its task is few_shot, else a file of conf/adapter."""
    settings = session.settings
    part = (settings if settings.task["name"] == "few_shot" else composed(["task=few_shot", f"adapter={name}"])).part("adapter")
    return _of_features(session.inject((part if search else part.without("search")).make()))


def adapter_of_run(session: Session) -> Adapter:
    """The adapter of a few-shot configuration, fitted as its run fits it."""
    return _of_features(cast(SupportedTask, build(session, **session.settings.task_knobs)).adapter)


def _of_features(adapter: AnyAdapter) -> Adapter:
    if adapter.reads_other_features:
        raise ValueError(
            f"{type(adapter).__name__} changes the encoder, and a classifier keeps its encoder; choose an adapter that learns from "
            "features, such as adapter=tip_adapter"
        )
    return cast(Adapter, adapter)
