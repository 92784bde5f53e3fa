"""ImageNet and its variants: folders named by wnid or label number, in the order of ImageNet's labels (that of the wnids)."""

from pathlib import Path

from multicrop.config.ranges import Count, Severity
from multicrop.data.base import Dataset, LabelledImages, assemble, file_images
from multicrop.data.classes import ClassList, packaged
from multicrop.data.sources.folder import SUFFIXES, image_files


def wnid_folders(*, name: str, test: str, train: str | None, n_classes: Count, classes: str, source: str) -> Dataset:
    """Read folders named by wnid, or by label number 0 to 999.

    The classes are those of the test folders, in the order of ImageNet's labels; a subset (ImageNet-R, -A) takes only its own classes
    from `train`.

    Args:
        name: Name of the data set.
        test: The folder with one folder of test images per class.
        train: The same with training images, or None.
        n_classes: The number of classes that the data set has.
        classes: The packaged class list with wnids (imagenet1k).
        source: Where the data can be downloaded, for messages.

    Returns:
        The data set; ids are paths below `test` or `train`.

    Raises:
        ValueError: If a folder does not exist or is not a class, or the number of classes is not `n_classes`.
    """
    reference = packaged(classes)
    if reference.keys is None:
        raise ValueError(f"dataset.classes={classes} has no wnids; use imagenet1k")
    top = Path(test).expanduser()
    if not top.is_dir():
        raise ValueError(f"{name} is not found: {top} is not a folder. Get {source}. If it is elsewhere: dataset.test=FOLDER")
    found = _rows(top, reference.keys, name)
    if len(found) != n_classes:
        raise ValueError(
            f"{top} has {len(found)} class folders, {name} has {n_classes} classes; unpack all of it, or set dataset.n_classes=NUMBER "
            "for a part of it"
        )
    rows = sorted(found.values())
    names, keys = [reference.names[row] for row in rows], [reference.keys[row] for row in rows]
    splits = {"test": _images(f"{name}/test", top, {row: place for place, row in found.items()}, rows)}
    if train:
        place = Path(train).expanduser()
        if not place.is_dir():
            raise ValueError(
                f"dataset.train={place} is not a folder; pass the folder of training images (one folder per wnid), or dataset.train=null"
            )
        folders = {row: folder for folder, row in _rows(place, reference.keys, name).items()}
        splits["train"] = _images(f"{name}/train", place, folders, rows)
    return assemble(name, ClassList(names, keys), splits)


def imagenet_c(*, root: str, corruption: str, severity: Severity, n_classes: Count, classes: str, source: str) -> Dataset:
    """Read the images of ImageNet-C below `root`/`corruption`/`severity`.

    Args:
        root: The folder that holds one folder per corruption.
        corruption: Name of the corruption.
        severity: 1 to 5.
        n_classes: The number of classes that the data set has.
        classes: The packaged class list with wnids (imagenet1k).
        source: Where the data can be downloaded, for messages.

    Returns:
        A data set of test images.

    Raises:
        ValueError: If the severity is out of range, or as `wnid_folders` does.
    """
    if severity not in range(1, 6):
        raise ValueError(f"dataset.severity is 1 to 5, got {severity}")
    base = Path(root).expanduser()
    if base.is_dir() and not (base / corruption).is_dir():
        there = ", ".join(sorted(child.name for child in base.iterdir() if child.is_dir())) or "nothing"
        raise ValueError(
            f"dataset.corruption={corruption} is not a folder of {base}, which holds {there}. Unpack the tar of this corruption"
        )
    test, name = str(base / corruption / str(severity)), f"imagenet_c-{corruption}-{severity}"
    return wnid_folders(name=name, test=test, train=None, n_classes=n_classes, classes=classes, source=source)


def _rows(top: Path, keys: list[str], name: str) -> dict[Path, int]:
    """The label of each class folder; raises ValueError if a folder is not a class or there are none."""
    folders = sorted(child for child in top.iterdir() if child.is_dir() and not child.name.startswith("."))
    row = {key: index for index, key in enumerate(keys)}
    numbers = bool(folders) and all(folder.name.isdigit() for folder in folders)
    labels = {folder: int(folder.name) if numbers else row.get(folder.name, -1) for folder in folders}
    if strange := [folder.name for folder, label in labels.items() if not 0 <= label < len(keys)]:
        raise ValueError(
            f"{len(strange)} folders of {top} are not classes of ImageNet: {', '.join(strange[:3])}; {name} needs folders named by wnid "
            "(n01440764, ...) or by label (0 to 999). Pass the folder that contains them"
        )
    if not folders:
        loose = (
            "; its images are not in class folders, sort them into wnid folders"
            if any(p.suffix.lower() in SUFFIXES for p in top.iterdir())
            else ""
        )
        raise ValueError(f"{top} has no class folders{loose}; {name} needs one folder per wnid (n01440764, ...)")
    return labels


def _images(name: str, top: Path, folders: dict[int, Path], rows: list[int]) -> LabelledImages:
    """The images of these classes; label i is class `rows[i]` of ImageNet. ids are paths below `top`."""
    files = [image_files(folders[row]) if row in folders else [] for row in rows]
    paths = [path for members in files for path in members]
    labels = [label for label, members in enumerate(files) for _ in members]
    return file_images(name, [path.relative_to(top).as_posix() for path in paths], labels, paths)
