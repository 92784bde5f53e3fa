"""Splits of a set of the datasets library, from the hub or from local parquet or arrow files, with encoded images."""

import glob
from pathlib import Path
from typing import Any

import datasets
import xxhash

from multicrop.data.contents import FileContents
from multicrop.data.sources.folder import image_files
from multicrop.files import content_hash
from multicrop.files.hub import hub_answers

FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


def load(path: str, config: str | None, revision: str | None, wanted: dict[str, str], *, streaming: bool) -> dict[str, Any]:
    """The wanted splits; raises ValueError if the set cannot be read or has no such split."""
    files, place = _local_files(path), Path(path).expanduser()
    if place.is_dir() and not files and not _saved(place) and image_files(place):
        raise ValueError(f"dataset.path={path} is a folder of images, not of tables. Read it with dataset=folder dataset.root={path}")
    try:
        if files:
            kind = FORMATS[files[0].suffix]
            found = datasets.load_dataset(kind, data_files=_splits_of(files, wanted), streaming=streaming)
        elif place.exists():
            found = datasets.load_from_disk(str(place))
            found = found if isinstance(found, datasets.DatasetDict) else {wanted["test"]: found}
        elif not hub_answers() and not datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("the HuggingFace hub does not answer; HF_HUB_OFFLINE=1 reads a set that was downloaded before")
        else:
            found = datasets.load_dataset(path, config, revision=revision, streaming=streaming)
    except (OSError, ValueError, ConnectionError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"dataset.path={path} cannot be loaded ({error}). Check the spelling and the network, or give a local .parquet or .arrow file; "
            "a set whose loading needs code of its own is not loaded: export it to parquet"
        ) from error
    if lacking := [name for name in wanted.values() if name not in found]:
        raise ValueError(
            f"{path} has no split {', '.join(lacking)}; its splits are {', '.join(found)}. Name them with dataset.test, dataset.train and "
            "dataset.validation (the last two may be null)"
        )
    return {split: found[name] for split, name in wanted.items()}


def _local_files(path: str) -> list[Path]:
    """The parquet or arrow files of a path, a glob or a folder; none for a hub id and for a folder of save_to_disk."""
    place = Path(path).expanduser()
    if place.is_dir() and not _saved(place):
        return sorted(file for file in place.rglob("*") if file.suffix in FORMATS)
    if place.is_file():
        return [place] if place.suffix in FORMATS else []
    globbed = any(mark in path for mark in "*?[")
    return sorted(file for file in place.parent.glob(place.name) if file.suffix in FORMATS) if globbed else []


def _saved(place: Path) -> bool:
    """Whether save_to_disk made a folder."""
    return any((place / marker).exists() for marker in ("dataset_info.json", "dataset_dict.json"))


def _splits_of(files: list[Path], wanted: dict[str, str]) -> dict[str, list[str]]:
    """The files of each split, whose name begins the name of the file or is that of its folder; a single file is the test split.

    The library reads the names as globs, so they are escaped.
    """
    if len(files) == 1:
        return {wanted["test"]: [glob.escape(str(files[0]))]}
    found: dict[str, list[str]] = {}
    for file in files:
        split = file.stem.split("-")[0].split(".")[0] or file.parent.name
        found.setdefault(split, []).append(glob.escape(str(file)))
    return found


def without_decoding(table: Any, image_column: str, label_column: str, name: str) -> Any:
    """The table with its image column as encoded bytes; raises ValueError if a column does not exist."""
    columns = list(table.features or next(iter(table), {}))
    if lacking := [column for column in (image_column, label_column) if column not in columns]:
        raise ValueError(
            f"{name} has no column {', '.join(lacking)}; its columns are {', '.join(columns)}. "
            "Name the right ones with dataset.image_column and dataset.label_column"
        )
    if isinstance((table.features or {}).get(image_column), datasets.Image):
        return table.cast_column(image_column, datasets.Image(decode=False))
    return table


def content_of(name: str, path: str, table: datasets.Dataset, more: list[str]) -> str | FileContents:
    """What identifies the content of a set: its local files; or the files and revision that a hub set was downloaded from."""
    place = Path(path).expanduser()
    files = _local_files(path) or sorted(file for file in place.rglob("*") if file.is_file())
    if files:
        return FileContents(name, [file.name for file in files], files, content_hash(*more), per_image=False)
    return content_hash(*hub_facts(table), *more)


def hub_facts(table: datasets.Dataset) -> list[str]:
    """The files that a hub set was downloaded from."""
    return sorted(table.info.download_checksums or {}) or _stored_facts(table)


def _stored_facts(table: datasets.Dataset) -> list[str]:
    """Paths within the cache (by configuration and revision) and sizes of the arrow files; for a set in memory a hash of its rows."""
    if files := [Path(entry["filename"]) for entry in table.cache_files]:
        return [f"{'/'.join(file.parts[-4:])}:{file.stat().st_size}" for file in files]  # configuration, version, revision, name
    digest = xxhash.xxh3_128(str(table.features).encode())
    for rows in table.with_format("arrow").iter(1000):
        for batch in rows.to_batches():
            digest.update(batch.serialize())
    return [digest.hexdigest()]
