"""The images that a few-shot adapter learns from and is selected on."""

import logging
from typing import Annotated

from multicrop.config.ranges import OneOf
from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.few_shot import few_shot_from_file, few_shot_split
from multicrop.data.limit import limited
from multicrop.data.published_splits import coop_split
from multicrop.runs.session import Session
from multicrop.runs.transfer import source_session

log = logging.getLogger(__name__)
DRAWS = {"nested": few_shot_split, "coop": coop_split}
SHOWN = 6  # classes in a warning
Draw = Annotated[str, OneOf(tuple(DRAWS))]


def support_and_validation(
    session: Session, *, shots: int, few_shot_file: str | None, draw: str = "nested", **_: object
) -> tuple[LabelledImages, LabelledImages]:
    """The support and validation images: those of a file, or drawn once per process.

    They are chosen among all classes, and those of the session's classes are kept, so that a half has the support of a run on all.

    Args:
        session: The session of the classes to learn.
        shots: Support images per class.
        few_shot_file: A file that names the images, or None.
        draw: How they are drawn without a file, ``"nested"`` or ``"coop"``.
        **_: Further knobs of the task.

    Raises:
        ValueError: If `draw` is neither, or as `few_shot_from_file` and the draws.
    """
    if draw not in DRAWS:
        raise ValueError(f"task.draw is {' or '.join(DRAWS)}, got {draw!r}")
    if session.settings.config.get("classes", "all") != "all":
        whole = support_and_validation(source_session(session, "all"), shots=shots, few_shot_file=few_shot_file, draw=draw)
        return _of_classes(whole[0], session.dataset), _of_classes(whole[1], session.dataset)
    dataset, seed = session.dataset, session.settings["seed"]
    if few_shot_file:
        support, validation = few_shot_from_file(dataset, few_shot_file)
        return support, limited(validation, session.settings.limit)
    key = [*(session.settings.part(group).values for group in ("dataset", "corruption")), draw, shots, seed]  # as the data set is shared
    support, validation = session.share("support", key, lambda: DRAWS[draw](dataset, shots=shots, seed=seed))
    return support, limited(validation, session.settings.limit)


def _of_classes(images: LabelledImages, dataset: Dataset) -> LabelledImages:
    """The images that a data set with fewer classes has, with its labels."""
    pool = dataset.train if images.name == dataset.train.name else dataset.validation
    position = {image_id: i for i, image_id in enumerate(pool.ids)}
    return pool.subset([position[image_id] for image_id in images.ids if image_id in position])


def warn_of_few(counts: dict[str, int], shots: int | None) -> None:
    """Log the classes that have fewer support images than asked for."""
    if fewer := {name: count for name, count in counts.items() if shots and count < shots}:
        listed = ", ".join(f"{name} {count}" for name, count in list(fewer.items())[:SHOWN])
        log.warning(
            f"{len(fewer)} of {len(counts)} classes have fewer support images than task.shots={shots}, as training images are few "
            f"or held back for validation: {listed}{', ...' if len(fewer) > SHOWN else ''}; metrics.json has the number of each class"
        )
