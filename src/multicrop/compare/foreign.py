"""Results that others exported (`multicrop export`) as records, which `compare` and `report` read too and mark as imported."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from multicrop.compare.collect import collect
from multicrop.compare.export import GROUPS, MEASURED, image_lines, names_of, run_lines
from multicrop.compare.foreign_files import read_lines
from multicrop.compare.run import SEEDS
from multicrop.files import make_folder
from multicrop.record import BESIDE, ROWS, Predictions, write_record

UNKNOWN = "unknown"
KINDS = ("label", "prediction")  # of classes in a line of an image
TOLERANCE = 1e-6  # of accuracies, which files write as decimals


@dataclass(frozen=True)
class Foreign:
    """One run of somebody else.

    Attributes:
        name: What names it among the runs of its source.
        by: Who ran it.
        source: The file or folder that was imported.
        lines: One line per row, as `export.run_lines` makes them.
        images: One line per row and image, as `export.image_lines` makes them.
    """

    name: str
    by: str
    source: str
    lines: Sequence[Mapping[str, Any]]
    images: Sequence[Mapping[str, Any]]

    @property
    def first(self) -> Mapping[str, Any]:
        """A line with what all rows share."""
        return self.lines[0]

    @cached_property
    def class_names(self) -> list[str]:
        """The class names in the order of the labels; sorted where the export has no numbers of classes."""
        if not self._has_numbers:
            return sorted({one[kind] for one in self.images for kind in KINDS})
        names = {one[f"{kind}_number"]: one[kind] for one in self.images for kind in KINDS}
        count = max(self.first.get("classes") or 0, 1 + max(names))
        return [names.get(number, f"class {number}") for number in range(count)]

    @cached_property
    def _has_numbers(self) -> bool:
        """Whether the export has the number of each class, which names alone do not give where two classes share one."""
        return all(one[f"{kind}_number"] is not None for one in self.images for kind in KINDS)

    def _numbers(self, images: Iterable[Mapping[str, Any]], kind: str) -> np.ndarray:
        """The number of the class that each image has as its label or prediction."""
        if self._has_numbers:
            return np.array([one[f"{kind}_number"] for one in images])
        places = {name: number for number, name in enumerate(self.class_names)}
        return np.array([places[one[kind]] for one in images])

    @cached_property
    def predictions(self) -> Predictions:
        """The predictions of all rows.

        Raises:
            ValueError: If a row is missing, rows have other images, or the accuracy of a row is not what its line states.
        """
        by_row = self._images_by_row()
        final = by_row["final"]
        domains, clusters = ([one.get(fact) or "" for one in final] for fact in ("domain", "cluster"))
        made = Predictions(
            [one["image_id"] for one in final],
            self._numbers(final, "label"),
            {row: self._numbers(images, "prediction") for row, images in by_row.items()},
            domains,
            clusters if any(clusters) else (),
            {row: np.array([one["rank"] for one in images]) for row, images in by_row.items() if _have_ranks(images)},
        )
        self._check(made)
        return made

    def _images_by_row(self) -> dict[str, list[Mapping[str, Any]]]:
        """The lines of the images of each row, in the order of the row ``final``."""
        found: dict[str, dict[str, Mapping[str, Any]]] = {row: {} for row in self._rows}
        for one in self.images:
            if one["row"] in found:
                found[one["row"]][one["image_id"]] = one
        order = found["final"]
        if wrong := [row for row, images in found.items() if not images or images.keys() != order.keys()]:
            raise ValueError(f"{self.source}: the run {self.name} lacks images of the rows {', '.join(wrong)}; export it again")
        return {row: [images[image_id] for image_id in order] for row, images in found.items()}

    def _check(self, made: Predictions) -> None:
        for row, numbers in self._rows.items():
            if abs(numbers["accuracy"] - made.accuracy(row)) > TOLERANCE:
                raise ValueError(
                    f"{self.source}: the run {self.name} states an accuracy of {numbers['accuracy']:.4f} in the row {row}, and its images "
                    f"give {made.accuracy(row):.4f}; the files were changed or are of two exports"
                )

    @property
    def _rows(self) -> dict[str, dict[str, Any]]:
        known = [line for line in self.lines if line["row"] in ROWS or line["row"].startswith(BESIDE)]
        return {row: {} for row in ROWS} | {line["row"]: {name: line.get(name) for name in MEASURED} for line in known}

    def write(self, folder: Path) -> Path:
        """Write the run as a record below a folder; returns the folder of the record."""
        first, scored = self.first, self.predictions
        place = folder / _plain(self.by) / "/".join(map(_plain, self.name.split("/")))
        make_folder(place, "-o")
        configured = {line["row"]: line.get("configuration") for line in self.lines}
        marked = {"by": self.by, "configuration": configured["final"]}
        views = max(int(numbers["views"] or 1) for numbers in self._rows.values())
        seconds = {line["row"]: line["seconds"] for line in self.lines if line.get("seconds") is not None}
        metrics = {"rows": self._rows, "images": len(scored), "views_per_image": views, "row_seconds": seconds}
        data = {name: first.get(name) for name in ("dataset", "split", "fingerprint", "limit")}
        write_record(
            place,
            config=self._config | {"imported": marked},
            metrics=metrics | {"protocol": json.loads(first.get("protocol_version") or "{}")},
            predictions=scored,
            environment={
                "choices": self._choices,
                "argv": str(first.get("command") or "").split(),
                "git_revision": first.get("git_revision"),
                "imported": marked | {"configurations": configured, "from": self.source, "identity": first.get("identity")},
            },
            data=data | {"class_names": self.class_names} | _training(first),
        )
        return place

    @property
    def _choices(self) -> dict[str, str]:
        named = {"dataset": self.first.get("dataset_option"), "model": self.first.get("model_option")}
        return {group: str(option) for group, option in {**{g: self.first.get(g) for g in GROUPS}, **named}.items() if option}

    @property
    def _config(self) -> dict[str, Any]:
        """What the export says of the configuration: options, seeds, split."""
        config: dict[str, Any] = {group: {"option": option} for group, option in self._choices.items()}
        config |= {name: self.first.get(name) for name in ("split", "limit")}
        beside = [row.removeprefix(BESIDE) for row in self._rows if row.startswith(BESIDE)]
        config["task"] = {"name": self.first["task"], "beside": {name: {"option": name} for name in beside}}
        for name in SEEDS:
            *group, knob = name.split(".")
            if (seed := self.first.get(name)) is not None:
                (config.setdefault(group[0], {}) if group else config)[knob] = seed
        return config


def import_runs(place: Path, folder: Path, *, by: str | None = None) -> list[Path]:
    """Write the runs of somebody else as records.

    Args:
        place: A file or folder that ``multicrop export`` wrote in any of its formats, or a folder of records.
        folder: The folder to write to; each run has a folder below that of who ran it.
        by: Who ran them; None: who the export names.

    Returns:
        The folders of the records.

    Raises:
        ValueError: If there is no such file, it is no export, or a run in it is incomplete.
    """
    found = list(_runs(place))
    for one in found:  # before one is written
        _ = one.predictions
    return [replace(one, by=by or one.by).write(folder) for one in found]


def _runs(place: Path) -> Iterable[Foreign]:
    if not place.exists():
        raise ValueError(f"{place} does not exist; pass a file or folder that multicrop export wrote, or a folder of records")
    read = read_lines(place)
    if read is None:
        runs, _ = collect([place])
        for run, name in zip(runs, names_of(runs), strict=True):
            yield Foreign(name, run.imported.get("by", UNKNOWN), str(place), run_lines(run, name), list(image_lines(run, name)))
        return
    for name in dict.fromkeys(line["run"] for line in read.runs):
        lines = [line for line in read.runs if line["run"] == name]
        yield Foreign(name, lines[0].get("by") or UNKNOWN, str(place), lines, [one for one in read.images if one["run"] == name])


def _have_ranks(images: Iterable[Mapping[str, Any]]) -> bool:
    """Whether every image has the rank of its label."""
    return all(one.get("rank") is not None for one in images)


def _training(line: Mapping[str, Any]) -> dict[str, Any]:
    stated, seen = line.get("training_data"), line.get("seen_in_training")
    named = stated.split(", ") if isinstance(stated, str) and stated != "not published" else stated
    return {"training_data": named, "seen": seen.split(", ") if seen else []}


def _plain(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^\w.=,+-]+", "_", name).strip(".") or UNKNOWN
