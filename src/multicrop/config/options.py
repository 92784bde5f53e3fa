"""The files of config groups: in conf/, and in a folder of the user's own that Hydra's --config-dir lays over it."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

FLAGS = ("--config-dir", "-cd")


def own_folder(arguments: Sequence[str], conf: Path) -> Path | None:
    """The folder that ``--config-dir`` names.

    Args:
        arguments: The command line without the program's name.
        conf: Folder of the package's configuration.

    Returns:
        The folder; None where there is no such flag.

    Raises:
        ValueError: If there is no such folder, or a file in it has the name of one in ``conf``, which Hydra would read instead.
    """
    named = [value for word, value in pairwise([*arguments, ""]) if word in FLAGS]
    named += [value for word in arguments for flag in FLAGS if (value := word.removeprefix(f"{flag}=")) != word]
    if not named:
        return None
    folder = Path(named[-1]).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"--config-dir {named[-1]} is not a folder; pass one that holds groups, such as FOLDER/crop/NAME.yaml")
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*.yaml"))]
    if taken := [str(name) for name in names if (conf / name).is_file()]:
        raise ValueError(f"{', '.join(taken)} in {folder}: multicrop has an option of this name, which would be read. Rename the file")
    return folder


def groups_in(folders: Iterable[Path]) -> set[str]:
    """The names of the config groups in folders."""
    return {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}


def option_files(group: str, folders: Iterable[Path]) -> dict[str, Path]:
    """The file of each option of a group, by the option's name, sorted."""
    places = [folder / group for folder in folders]
    found = {path.relative_to(place).with_suffix("").as_posix(): path for place in places for path in place.rglob("*.yaml")}
    return dict(sorted(found.items()))


def bases_of(path: Path) -> list[Path]:
    """The files of its group that a file begins from."""
    entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    return [path.with_name(f"{one}.yaml") for one in entries if isinstance(one, str) and one != "_self_" and not set("/@") & set(one)]


def option_content(path: Path) -> dict[str, Any]:
    """The content of a file, laid over that of the files of its group that it begins from."""
    merged: dict[str, Any] = {}
    for base in bases_of(path):
        merged |= option_content(base)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return merged | {name: value for name, value in content.items() if name != "defaults"}
