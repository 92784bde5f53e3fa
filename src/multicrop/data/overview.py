"""What a data set holds, in a few lines: class names, and images per class of each split."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from multicrop.data.base import Dataset, LabelledImages

SHOWN, LONGEST = 6, 30  # class names in a line, and their characters


def per_class(images: LabelledImages, class_names: Sequence[str]) -> dict[str, int]:
    """The number of images of each class."""
    counts = Counter(images.labels)
    return {name: counts[label] for label, name in enumerate(class_names)}


def three(counts: Sequence[int]) -> str:
    """The smallest, median and largest count, or the one count that all have."""
    least, median, most = min(counts), float(np.median(counts)), max(counts)
    return f"{least} per class" if least == most else f"{least} / {median:g} / {most} per class (smallest / median / largest)"


def overview(dataset: Dataset) -> list[str]:
    """Describe a data set.

    Args:
        dataset: The data set.

    Returns:
        A line with the class names, shortened where there are many, and a line per split that has images.
    """
    names = dataset.class_names
    chosen = names if len(names) <= SHOWN else [*names[: SHOWN - 1], "...", names[-1]]
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in chosen]
    lines = [f"{dataset.name}: {len(names)} classes: {', '.join(shown)}"]
    for split in ("train", "validation", "test"):
        images: LabelledImages = getattr(dataset, split)
        if images.indexed is not True:
            lines.append(f"  {split}: a stream, whose images are counted when they are read")
        elif len(images):
            lines.append(f"  {split}: {len(images):,} images, {three(list(per_class(images, names).values()))}")
    return lines
