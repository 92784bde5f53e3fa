"""CUB-200-2011 in the layout of its authors: images.txt, image_class_labels.txt, train_test_split.txt and classes.txt."""

from pathlib import Path

from multicrop.data.base import Dataset, assemble, file_images
from multicrop.data.classes import classes_of

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def cub(*, root: str, classes: str) -> Dataset:
    """Read CUB-200-2011 with its official training and test split; class names are matched by name.

    Args:
        root: The folder of images.txt, with the images below images/.
        classes: The packaged class list (cub200).

    Returns:
        The data set; ids are the paths of images.txt.

    Raises:
        ValueError: If a list does not exist, has a malformed line, or does not belong to the others.
    """
    base = Path(root).expanduser()
    if missing := [name for name in LISTS if not (base / name).is_file()]:
        raise ValueError(
            f"CUB-200-2011 is not found: {base} lacks {', '.join(missing)}. Get CUB_200_2011.tgz from its authors "
            "(https://www.vision.caltech.edu/datasets/cub_200_2011/, about 1.2 GB), unpack it, and pass dataset.root=FOLDER"
        )
    images, labels, training, names = (_read(base / name) for name in LISTS)
    if not images.keys() == labels.keys() == training.keys() or set(labels.values()) - names.keys():
        raise ValueError(f"the lists of {base} do not name the same images and classes; unpack the archive again")
    numbers = sorted(names, key=int)
    row = {number: index for index, number in enumerate(numbers)}
    listed = classes_of([names[n] for n in numbers], what=str(base / "classes.txt"), classes=classes, class_names=None)
    splits = {}
    for split, flag in (("train", "1"), ("test", "0")):
        members = [key for key in sorted(images, key=int) if training[key] == flag]
        ids = [images[key] for key in members]
        splits[split] = file_images(f"cub200/{split}", ids, [row[labels[key]] for key in members], [base / "images" / i for i in ids])
    return assemble("cub200", listed, splits)


def _read(file: Path) -> dict[str, str]:
    """The lines "number value" of a list."""
    pairs = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if odd := [pair for pair in pairs if len(pair) != 2 or not pair[0].isdigit()]:
        raise ValueError(f"{file} has the line {' '.join(odd[0])!r}; each line needs a number and a value. Unpack the archive again")
    return {number: value.strip() for number, value in pairs}
