"""Adapters that learn from other classes or another data set than the scored one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from multicrop.adapters.base import Adapter, Examples
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Scorer
from multicrop.data.base import Dataset
from multicrop.runs.session import Session
from multicrop.runs.settings import Part
from multicrop.runs.source import GROUPS, Source
from multicrop.runs.sweep_cache import SweepCache

SHOWN = 3  # classes in a message


def source_session(session: Session, source: Source) -> Session:
    """The parts of the run for the classes or the data set that its adapter learns from.

    Args:
        session: The parts of the run.
        source: A half of the classes, the values of `source.composed`, or None.

    Returns:
        The session of the source, which shares encoder and banks with that of the run; the run's own where it scores the source.
    """
    config = session.settings.config
    if source is None or source == config.get("classes"):
        return session
    changed: dict[str, Any] = (
        {"classes": source} if isinstance(source, str) else {"classes": "all", **{group: source[group] for group in GROUPS}}
    )
    changed["task"] = {**config["task"], "source": None}
    session.cache = session.cache or SweepCache()  # so that both load one model
    return Session(replace(session.settings, config={**config, **changed}), session.cache)


def transferred(adapter: Adapter, part: Part, source: Session, target: Session) -> Adapter:
    """The adapter for the classes of another session.

    Args:
        adapter: The adapter that was fitted in `source`.
        part: What made it.
        source: The session of its fit.
        target: The session that scores.

    Returns:
        For an adapter without rows of classes a new one with the same tensors and the target's prompts; for another one its rows of the
        target's classes.

    Raises:
        ValueError: If it has rows of classes, and none for some class of the target.
    """
    if adapter.class_free:
        made: Adapter = target.inject(part.make())
        made.restore(adapter.learned_tensors(), adapter.selection["chosen"])
        made.selection = adapter.selection
        return made
    rows = class_rows(source.dataset, target.dataset)
    if lacking := [name for name, row in zip(target.dataset.class_names, rows, strict=True) if row is None]:
        raise ValueError(
            f"{type(adapter).__name__} has a row per class, and no row for {len(lacking)} of the {len(rows)} classes of "
            f"{target.dataset.name}: it learned from {source.dataset.name}, which lacks {', '.join(lacking[:SHOWN])}. Choose an adapter "
            "without rows of classes (adapter=rla, prolip, clip_adapter, coop or clip_lora), or task.source=null"
        )
    return ClassRows(adapter, [row for row in rows if row is not None], score=target.scorer)


def class_rows(source: Dataset, target: Dataset) -> list[int | None]:
    """The position in `source` of each class of `target`, by key where both have keys and otherwise by name; None where it has none."""
    if source is target:
        return list(range(len(source.class_names)))
    keyed = source.class_keys and target.class_keys
    known, wanted = (source.class_keys, target.class_keys) if keyed else (source.class_names, target.class_names)
    positions = {key: position for position, key in enumerate(known or [])}
    return [positions.get(key) for key in wanted or []]


class ClassRows(Adapter):
    """The logits of a fitted adapter for some of its classes, from its own prompts.

    Args:
        adapter: The fitted adapter.
        rows: Positions of the classes, in the order of the logits.
        score: The scorer of the run.
    """

    def __init__(self, adapter: Adapter, rows: Sequence[int], *, score: Scorer) -> None:
        super().__init__(text=score.text, logit_scale=score.logit_scale, score=score)
        self.adapter, self.rows, self.selection = adapter, list(rows), adapter.selection

    def fit(self, support: Examples, validation: Examples) -> None:
        """Raise TypeError: the adapter is fitted before."""
        raise TypeError("ClassRows takes a fitted adapter; fit that one")

    def forward(self, views: Views, logits: Logits) -> Float[Tensor, "batch classes"]:
        """Compute the adapter's logits of the classes, shape (batch, classes); `logits`, of the run's prompts, are not used."""
        return self.adapter(views, self.adapter.score(views))[:, self.rows]
