"""What a Classifier is made of: settings outside of run.py, a session for given classes, an adapter of features."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from safetensors.torch import save
from torch import Tensor

from multicrop.adapters.base import Adapter, AnyAdapter
from multicrop.data.base import Dataset
from multicrop.data.pictures import as_images
from multicrop.runs.few_shot import SupportedTask, build
from multicrop.runs.session import Session, inject
from multicrop.runs.settings import CONF, Settings, composed

Classes = Mapping[str, Sequence[str]] | Sequence[str]
TASKS = ("zero_shot", "few_shot")  # tasks that classify each image by itself


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
        named = (CONF / "model" / f"{model}.yaml").is_file()
        path = Path(model).expanduser()
        chosen += [f"model={model}"] if named else ["model=local", f"model.path={path if path.exists() else model}"]
    chosen += [f"{group}={name}" for group, name in (("crop", crop), ("aggregator", aggregator)) if name]
    settings = composed([*chosen, *overrides], None if config is None else Path(config))
    if settings.task["name"] not in TASKS:
        raise ValueError(
            f"a classifier treats each image by itself, and task={settings.task['name']} does not; take a configuration of "
            "task=zero_shot or task=few_shot, such as the chosen.yaml of task=choose"
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
    return _of_features(inject((part if search else part.without("search")).make(), **session.injectables))


def adapter_of_run(session: Session) -> Adapter:
    """The adapter of a few-shot configuration, fitted as its run fits it."""
    return _of_features(cast(SupportedTask, build(session, **session.settings.task_knobs)).adapter)


def content_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of named tensors."""
    return hashlib.blake2b(save({name: value.contiguous() for name, value in tensors.items()}), digest_size=16).hexdigest()


def _of_features(adapter: AnyAdapter) -> Adapter:
    if adapter.tunes_encoder is True:
        raise ValueError(
            f"{type(adapter).__name__} changes the encoder, and a classifier keeps its encoder; choose an adapter that learns from "
            "features, such as adapter=tip_adapter"
        )
    return adapter
