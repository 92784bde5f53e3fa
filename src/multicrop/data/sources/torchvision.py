"""`dataset=torchvision`: a set of torchvision.datasets by class name, for its lists of files and labels; the decoding is ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision
from omegaconf import DictConfig, OmegaConf

from multicrop.data.base import Dataset, LabelledImages, assemble, file_images
from multicrop.data.classes import ClassList, classes_of, numbered_classes

FILE_LISTS = ("_image_files", "_images", "samples", "_samples", "imgs")
LABEL_LISTS = ("_labels", "targets", "labels")


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
    """`torchvision.datasets.<set_class>(root, **arguments)` a split, with the arguments that `train`, `validation`, `test` give.

    Nothing is downloaded unless `download` asks for it. Class names are the set's own, matched by name where a list is given. Raises
    ValueError for an unknown class, one that unpickles or that keeps no list of image files, and for data that are not there.
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
        raise ValueError(f"dataset.set_class={set_class} is no class of torchvision.datasets; pass one such as DTD, Food101 or Country211")
    if set_class in ("CIFAR10", "CIFAR100", "LSUN"):
        raise ValueError(f"torchvision.datasets.{set_class} reads pickles, which run code; use dataset=cifar10, cifar100 or hf instead")
    plain = OmegaConf.to_container(arguments, resolve=True) if isinstance(arguments, DictConfig) else dict(arguments)
    try:
        return kind(Path(root).expanduser(), **plain, **({"download": True} if download else {}))
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        get = f"Get {source}" if source else "Let torchvision fetch it with dataset.download=true"
        raise ValueError(
            f"torchvision.datasets.{set_class} finds no data in {root} with {plain} ({error}). {get}; dataset.root=FOLDER"
        ) from error


def _listed(made: Any, set_class: str) -> tuple[Any, list[Path], list[int]]:
    """The files and labels of a split; raises ValueError for a set that keeps images in another way."""
    files = next((value for name in FILE_LISTS if (value := getattr(made, name, None)) is not None and len(value)), None)
    if files is None:
        raise ValueError(f"torchvision.datasets.{set_class} keeps no list of image files; save it as a folder tree and use dataset=folder")
    pairs = isinstance(files[0], tuple | list)
    paths = [Path(item[0] if pairs else item) for item in files]
    labels = [item[1] for item in files] if pairs else next(getattr(made, name) for name in LABEL_LISTS if hasattr(made, name))
    return made, paths, [int(label) for label in labels]


def _images(name: str, paths: list[Path], labels: list[int], root: Path) -> LabelledImages:
    """Files in the order of their paths, so that ids and order do not depend on the file system."""
    order = sorted(range(len(paths)), key=lambda i: paths[i].as_posix())
    ids = [paths[i].relative_to(root).as_posix() if paths[i].is_relative_to(root) else paths[i].name for i in order]
    return file_images(name, ids, [labels[i] for i in order], [paths[i] for i in order])
