"""Find records below folders, with the reason for each folder whose record cannot be read."""

import glob
from collections.abc import Sequence
from pathlib import Path

from multicrop.compare.run import Run, read_run
from multicrop.config import local_folder
from multicrop.files import is_url
from multicrop.record import CONFIG, ENVIRONMENT, FAILURE, METRICS, POINTER, RecordError, fetched


def collect(places: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Read all records in folders or globs, each record once.

    Args:
        places: Folders of records or of sweeps, globs of such folders, or addresses in object storage, whose records are copied into the
            folder ``paths.local`` (MULTICROP_LOCAL).

    Returns:
        The runs, and one message per folder whose record cannot be read.

    Raises:
        ValueError: If a place does not exist or no record can be read.
    """
    runs: dict[Path, Run] = {}
    problems = []
    for folder in (f for place in places for f in _folders(str(place))):
        try:
            run = read_run(folder)
            _ = run.sorted_predictions  # reads the file, so that a damaged one is reported here
            runs.setdefault(run.folder.resolve(), run)
        except RecordError as error:
            problems.append(str(error))
    if not runs:
        raise ValueError("\n".join([f"no record could be read in {', '.join(map(str, places))}", *problems]))
    return list(runs.values()), list(dict.fromkeys(problems))


def _matches(place: Path) -> list[Path]:
    """The paths that a glob names; the parts of it that exist as they are written, such as `runs[1]`, are no pattern."""
    there = next((path for path in (place, *place.parents) if path.exists()), Path())
    pattern = str(place.relative_to(there))
    if there == place or not glob.has_magic(pattern):
        return [place]
    return [there / name for name in sorted(glob.glob(pattern, root_dir=there, recursive=True))]  # noqa: PTH207 without hidden folders


def _folders(place: str) -> list[Path]:
    """The folders at or below a place that have a record, or the files of an unfinished one."""
    matched = [fetched(place, local_folder())] if is_url(place) else _matches(Path(place))
    if not matched or not all(path.exists() for path in matched):
        raise ValueError(f"{place} does not exist; pass folders of records, globs of them, or the folder of a sweep")
    found: list[Path] = []
    for path in matched:
        top = path.parent if path.name == METRICS else path
        inside = [p for name in (METRICS, POINTER, FAILURE) for p in top.rglob(name)]
        inside += [p for p in top.rglob(ENVIRONMENT) if (p.parent / CONFIG).is_file()]
        found += dict.fromkeys(sorted(p.parent for p in inside if "wandb" not in p.relative_to(top).parts))
    if not found:
        raise ValueError(f"{place} holds no record: a record is a folder with {METRICS}, as python run.py writes it")
    return found
