"""`dataset=folder`: any directory of class folders, with or without train / val / test folders above them."""

import json
from collections.abc import Mapping
from pathlib import Path

from multicrop.data.base import Dataset, LabelledImages, divided, file_images
from multicrop.data.classes import ClassList, classes_of

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def folder(
    *,
    root: str,
    class_names: str | None,
    test_share: float,
    split_seed: int,
    classes: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Dataset:
    """Class folders below `root`, or below `root`/train, /val and /test. Without /test, the images of /val are for testing; without
    both, `test_share` of each class is.

    Class names are the folders' names with "_" as spaces; `class_names`, a JSON object {folder: class name}, replaces some or all. A JSON
    list of names, or the packaged list `classes`, is matched to the folders by name (after `aliases`), so its order does not matter.
    Images are found at any depth. Raises ValueError when the folder is missing, empty, has one class or a class without images.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise ValueError(f"dataset.root={base} is no folder; pass the directory that holds one folder a class (dataset.root=PATH)")
    if not 0 < test_share < 1:
        raise ValueError(f"dataset.test_share lies between 0 and 1, got {test_share}")
    parts = {split: found for split in SPLITS if (found := _split_folder(base, split))}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    roots = list(parts.values()) or [base]
    folders = sorted({child.name for top in roots for child in top.iterdir() if _is_class(child)})
    names = _names(folders, class_names, classes, dict(aliases or {}), base)
    if "test" in parts:
        files = {split: _files(top, folders) for split, top in parts.items()}
    else:
        files = dict(zip(("train", "test"), divided(_files(roots[0], folders), test_share, split_seed), strict=True))
    _check_classes(files, folders, base)
    images = {split: _images(split, base, files.get(split, {}), folders) for split in SPLITS}
    return Dataset(base.name, names.names, {}, images["train"], images["validation"], images["test"], names.keys)


def _split_folder(base: Path, split: str) -> Path | None:
    return next((base / name for name in SPLITS[split] if (base / name).is_dir()), None)


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _names(folders: list[str], mapping_file: str | None, classes: str | None, aliases: dict[str, str], base: Path) -> ClassList:
    """The class name of each folder; raises ValueError for a mapping that fits no folder or gives two the same name."""
    if len(folders) < 2:
        found = f"one class folder ({folders[0]})" if folders else "no class folder"
        raise ValueError(f"{base} holds {found}; a classification needs two or more, one folder a class")
    if classes or (mapping_file and _is_list(Path(mapping_file).expanduser())):
        return classes_of(folders, what=f"the folders of {base}", classes=classes, class_names=mapping_file, aliases=aliases)
    mapping = aliases | (_read_mapping(Path(mapping_file).expanduser(), folders) if mapping_file else {})
    names = [mapping.get(name, name.replace("_", " ")) for name in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two folders have the class name {twice[0]!r}; tell them apart in dataset.class_names")
    return ClassList(names)


def _is_list(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), list)
    except (OSError, ValueError):
        return False


def _read_mapping(path: Path, folders: list[str]) -> dict[str, str]:
    """The JSON object {folder: class name} of `dataset.class_names`; raises ValueError when it is something else."""
    wanted = "it wants a JSON object {folder: class name}"
    if not path.is_file():
        raise ValueError(f"dataset.class_names={path} does not exist; {wanted}")
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"dataset.class_names={path} is no JSON ({error}); {wanted}") from error
    if not isinstance(mapping, dict) or not all(isinstance(name, str) and name.strip() for name in mapping.values()):
        raise ValueError(f"dataset.class_names={path} holds something else; {wanted} of non-empty strings")
    if stray := sorted(set(mapping) - set(folders)):
        raise ValueError(
            f"dataset.class_names={path} names folders that are not there: {', '.join(stray[:3])}; "
            f"the folders are {', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''}"
        )
    return mapping


def _files(top: Path, folders: list[str]) -> dict[str, list[Path]]:
    return {
        name: sorted(path for path in (top / name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()) for name in folders
    }


def _check_classes(files: dict[str, dict[str, list[Path]]], folders: list[str], base: Path) -> None:
    empty = [name for name in folders if not files["test"].get(name)]
    if len(empty) == len(folders):
        raise ValueError(f"no image below {base}; files that count end in {', '.join(sorted(SUFFIXES))}")
    if empty:
        raise ValueError(
            f"{len(empty)} class folders have no test image: {', '.join(empty[:3])}. Add images (endings: "
            f"{', '.join(sorted(SUFFIXES))}) or remove the folders"
        )


def _images(split: str, base: Path, files: dict[str, list[Path]], folders: list[str]) -> LabelledImages:
    """The images of one split; an id is the path below the root."""
    paths = [path for name in folders for path in files.get(name, [])]
    labels = [label for label, name in enumerate(folders) for _ in files.get(name, [])]
    return file_images(f"{base.name}/{split}", [path.relative_to(base).as_posix() for path in paths], labels, paths)
