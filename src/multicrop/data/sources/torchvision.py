"""`dataset=torchvision`: a set of torchvision.datasets by class name, for its files and labels; images are decoded by `open_image`."""

import inspect
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import torchvision

from multicrop.data.base import Dataset, LabelledImages, assemble, file_images
from multicrop.data.classes import ClassList, classes_of, numbered_classes


def torchvision_set(
    *,
    set_class: str | None,
    root: str,
    download: bool,
    train: Mapping[str, Any] | None,
    validation: Mapping[str, Any] | None,
    test: Mapping[str, Any],
    name: str | None = None,
    classes: str | None = None,
    class_names: str | None = None,
    aliases: Mapping[str, str] | None = None,
    source: str = "",
) -> Dataset:
    """Read a data set of torchvision, one instance per split.

    Nothing is downloaded unless `download` is true. Class names are those of the set, matched by name if a list is given.

    Args:
        set_class: Name of a class of `torchvision.datasets` that takes a `loader`, such as DTD or Food101.
        root: The first argument of the class.
        download: Whether torchvision may download the data.
        train: Further arguments of the class for the training images, or None.
        validation: The same for the validation images, or None.
        test: The same for the test images.
        name: Name of the data set; None is the name of the class.
        classes: A packaged class list that the names are matched to, or None.
        class_names: A JSON list of class names, or None: any order for names, label order for numbers.
        aliases: {name in the data: name in the list}.
        source: Where the data can be downloaded, for messages.

    Returns:
        The data set; ids are paths below `root`.

    Raises:
        ValueError: If the class does not exist, reads pickles or takes no `loader`, or the data do not exist.
    """
    made: dict[str, tuple[Any, list[Path], list[int]]] = {}
    for split, arguments in (("train", train), ("validation", validation), ("test", test)):
        if arguments is not None:
            made[split] = _listed(_make(set_class, root, download, arguments, source), str(set_class))
    title = name or str(set_class).lower()
    found = getattr(made["test"][0], "classes", None)
    if found is None:
        every = [label for _, _, labels in made.values() for label in labels]
        names: ClassList = numbered_classes(every, what=title, classes=classes, class_names=class_names)
    else:
        names = classes_of([_first(c) for c in found], what=title, classes=classes, class_names=class_names, aliases=aliases)
    splits = {split: _images(f"{title}/{split}", paths, labels, Path(root).expanduser()) for split, (_, paths, labels) in made.items()}
    return assemble(title, names, splits)


def _first(title: object) -> str:
    """A class name; where a set gives several for a class, the first."""
    return title if isinstance(title, str) else str(next(iter(title)))


def _make(set_class: str | None, root: str, download: bool, arguments: Mapping[str, Any], source: str) -> Any:
    """One split as torchvision has it."""
    kind = getattr(torchvision.datasets, set_class or "", None)
    if kind is None or not isinstance(kind, type) or not issubclass(kind, torchvision.datasets.VisionDataset):
        raise ValueError(
            f"dataset.set_class={set_class} is not a class of torchvision.datasets; pass one such as DTD, Food101 or Country211"
        )
    if set_class in ("CIFAR10", "CIFAR100", "LSUN"):
        raise ValueError(f"torchvision.datasets.{set_class} reads pickles, which run code; use dataset=cifar10, cifar100 or hf instead")
    if "loader" not in inspect.signature(kind).parameters and not issubclass(kind, torchvision.datasets.DatasetFolder):
        raise ValueError(
            f"torchvision.datasets.{set_class} takes no loader, so its image files cannot be listed; save it as a folder tree and use "
            "dataset=folder"
        )
    plain = dict(arguments)
    try:
        # the loader returns the path of the image, so that an item of the set is (path, label)
        return kind(Path(root).expanduser(), loader=Path, **plain, **({"download": True} if download else {}))
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        get = f"Get {source}" if source else "Let torchvision fetch it with dataset.download=true"
        raise ValueError(
            f"torchvision.datasets.{set_class} finds no data in {root} with {plain} ({error}). {get}; dataset.root=FOLDER"
        ) from error


def _listed(made: Any, set_class: str) -> tuple[Any, list[Path], list[int]]:
    """The files and labels of a split; raises ValueError if an item is not an image file with a label."""
    items = [made[index] for index in range(len(made))]
    if strange := [item for item in items if not (isinstance(item[0], Path) and isinstance(item[1], Integral))]:
        raise ValueError(
            f"torchvision.datasets.{set_class} gives {strange[0]!r} instead of an image file and a label; save it as a folder tree and use "
            "dataset=folder"
        )
    return made, [path for path, _ in items], [int(label) for _, label in items]


def _images(name: str, paths: list[Path], labels: list[int], root: Path) -> LabelledImages:
    """Files in the order of their paths, which does not depend on the file system."""
    order = sorted(range(len(paths)), key=lambda i: paths[i].as_posix())
    ids = [paths[i].relative_to(root).as_posix() if paths[i].is_relative_to(root) else paths[i].name for i in order]
    return file_images(name, ids, [labels[i] for i in order], [paths[i] for i in order])
