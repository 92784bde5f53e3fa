"""`dataset=folder`: any directory of class folders, with or without train / val / test folders above them."""

from collections.abc import Mapping
from pathlib import Path

from multicrop.config.ranges import InnerShare, Seed
from multicrop.data.base import Dataset, LabelledImages, file_images
from multicrop.data.classes import ClassList, check_spellings, classes_of
from multicrop.data.sources.clusters import matched_clusters
from multicrop.data.sources.splits import SPLITS, divided
from multicrop.files.reading import json_of

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def folder(
    *,
    root: str,
    class_names: str | None,
    test_share: InnerShare,
    split_seed: Seed,
    classes: str | None = None,
    aliases: Mapping[str, str] | None = None,
    cluster_pattern: str | None = None,
    allow_empty: bool = False,
) -> Dataset:
    """Read class folders below `root`, or below `root`/train, /val and /test, at any depth.

    A folder of a split may be spelled in any case, and as training, valid, validation or testing. Without /test, the images of /val are
    for testing; without both, `test_share` of each class is.

    Args:
        root: The directory.
        class_names: A JSON object {folder: class name} that replaces some or all names, a JSON list of names that is matched to the
            folders by name, or None: the folders' names with "_" as spaces.
        test_share: Share of each class that is for testing where the folders make no split.
        split_seed: Seed of that split.
        classes: A packaged class list that the folders are matched to, or None.
        aliases: {folder: class name}, applied before matching.
        cluster_pattern: Regular expression that is searched in the path below `root`; its first group, or all that matches, is the cluster
            (patient, video, session) of the image. An image without a match is in none. None: images are independent.
        allow_empty: Whether class folders may have no test image; their classes are still among those that are predicted.

    Returns:
        The data set; ids are paths below `root`.

    Raises:
        ValueError: If the folder does not exist, is empty or has one class, a split or a class is there in two spellings, a class has no
            test image, or the pattern is no regular expression or matches no image of a split.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise ValueError(f"dataset.root={base} is not a folder; pass the directory that holds one folder per class (dataset.root=PATH)")
    if not 0 < test_share < 1:
        raise ValueError(f"dataset.test_share is between 0 and 1, got {test_share}")
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
    _check_classes(files, folders, base, allow_empty)
    images = {split: _images(split, base, files.get(split, {}), folders, cluster_pattern) for split in SPLITS}
    return Dataset(base.name, names.names, {}, images["train"], images["validation"], images["test"], names.keys)


def _split_folder(base: Path, split: str) -> Path | None:
    """The folder of a split in any case; raises ValueError if there are several."""
    found = sorted(child for child in base.iterdir() if _is_class(child) and child.name.lower() in SPLITS[split])
    if len(found) > 1:
        raise ValueError(
            f"{base} holds {' and '.join(path.name for path in found)}, which both name the {split} images; merge them into one folder, "
            "or rename the one that is no split"
        )
    return found[0] if found else None


def _split_names(base: Path) -> list[str]:
    return [found.name for split in SPLITS if (found := _split_folder(base, split))]


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _names(folders: list[str], mapping_file: str | None, classes: str | None, aliases: dict[str, str], base: Path) -> ClassList:
    """The class name of each folder; raises ValueError if the mapping names other folders or two folders get one name."""
    if len(folders) < 2:
        found = f"one class folder ({folders[0]})" if folders else "no class folder"
        hint = "; folders named train, val or test in any case are splits, not classes" if _split_names(base) else ""
        raise ValueError(f"{base} holds {found}; a classification needs two or more, one folder per class{hint}")
    if classes or (mapping_file and _is_list(Path(mapping_file).expanduser())):
        return classes_of(folders, what=f"the folders of {base}", classes=classes, class_names=mapping_file, aliases=aliases)
    mapping = aliases | (_read_mapping(Path(mapping_file).expanduser(), folders) if mapping_file else {})
    names = [mapping.get(name, name.replace("_", " ")) for name in folders]
    check_spellings(names, f"the folders of {base}", "Merge them, or tell them apart in dataset.class_names", said=folders)
    return ClassList(names)


def _is_list(path: Path) -> bool:
    try:
        return isinstance(json_of(path), list)
    except ValueError:
        return False


def _read_mapping(path: Path, folders: list[str]) -> dict[str, str]:
    """The JSON object {folder: class name} of `dataset.class_names`; raises ValueError if it is something else."""
    wanted = "expected a JSON object {folder: class name}"
    try:
        mapping = json_of(path)
    except ValueError as error:
        raise ValueError(f"dataset.class_names={path} {error}; {wanted}") from error
    if not isinstance(mapping, dict) or not all(isinstance(name, str) and name.strip() for name in mapping.values()):
        raise ValueError(f"dataset.class_names={path} holds something else; {wanted} of non-empty strings")
    if stray := sorted(set(mapping) - set(folders)):
        raise ValueError(
            f"dataset.class_names={path} names folders that do not exist: {', '.join(stray[:3])}; "
            f"the folders are {', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''}"
        )
    return mapping


def _files(top: Path, folders: list[str]) -> dict[str, list[Path]]:
    return {name: image_files(top / name) for name in folders}


def image_files(top: Path) -> list[Path]:
    """The image files below a folder, at any depth, sorted by path."""
    return sorted(path for path in top.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _check_classes(files: dict[str, dict[str, list[Path]]], folders: list[str], base: Path, allow_empty: bool) -> None:
    empty = [name for name in folders if not files["test"].get(name)]
    if len(empty) == len(folders):
        raise ValueError(f"no image below {base}; image files end in {', '.join(sorted(SUFFIXES))}")
    if empty and not allow_empty:
        raise ValueError(
            f"{len(empty)} class folders have no test image: {', '.join(empty[:3])}. Add images (endings: "
            f"{', '.join(sorted(SUFFIXES))}) or remove the folders; dataset.allow_empty=true keeps them as classes that can be predicted"
        )


def _images(split: str, base: Path, files: dict[str, list[Path]], folders: list[str], cluster_pattern: str | None) -> LabelledImages:
    """The images of one split; an id is the path below the root."""
    paths = [path for name in folders for path in files.get(name, [])]
    labels = [label for label, name in enumerate(folders) for _ in files.get(name, [])]
    name, ids = f"{base.name}/{split}", [path.relative_to(base).as_posix() for path in paths]
    return file_images(name, ids, labels, paths, matched_clusters(ids, cluster_pattern, name))
