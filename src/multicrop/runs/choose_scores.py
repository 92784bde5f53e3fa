"""Predictions of many settings from one bank per range of sides; a killed search continues from its saved scores, and a budget is kept."""

import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multicrop.aggregators import Views
from multicrop.aggregators.gate import entropy_gap
from multicrop.compare.label_free import Unlabelled, agreement
from multicrop.data.base import LabelledImages
from multicrop.files import DamagedFileError, content_hash, make_folder, naming, read_sealed, set_aside, write_sealed
from multicrop.runs.choose_adapters import CrossFit, Known
from multicrop.runs.choose_budget import Budget
from multicrop.runs.choose_columns import COLUMNS, Arrays, columns, fused_logits
from multicrop.runs.choose_settings import Crops, Setting, with_setting
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.show.choosing import SearchView

log = logging.getLogger(__name__)
KNOB = "paths.cache"


@dataclass(frozen=True)
class Scored:
    """What settings predict.

    Args:
        settings: The settings, in order of preference.
        predictions: Class index, shape (settings, images).
        probability: Calibrated probability of the true class, shape (settings, images); 0 where labels are not read.
        information: Mutual information of images and predictions per setting, nats.
        consistency: Share of the images that two halves of the crops give the same class, per setting.
        gap: Mean entropy of the crops above that of the global view, per setting, nats (see ``aggregators.gate``).
        labels: Label per image.
        clusters: Cluster per image; empty where there are none.
        left_out: Settings that the budget did not allow.
    """

    settings: list[Setting]
    predictions: np.ndarray
    probability: np.ndarray
    information: np.ndarray
    consistency: np.ndarray
    gap: np.ndarray
    labels: np.ndarray
    clusters: list[str]
    left_out: list[Setting]

    @property
    def correct(self) -> np.ndarray:
        """Whether each setting classifies each image correctly, shape (settings, images)."""
        return self.predictions == self.labels

    @property
    def unlabelled(self) -> Unlabelled:
        """What criteria without labels read."""
        local = np.asarray([setting.crops.n_crops > 0 and setting.fusion_weight == 1 for setting in self.settings])
        return Unlabelled(self.predictions, self.information, self.consistency, self.gap, local)


class Search:
    """Scores settings on images.

    Args:
        settings: The configuration of the run.
        cache: Shares data set, model, texts and banks.
        images: The images.
        folder: Where scores are saved; its name says what decides them beside the setting.
        budget: What the search may cost.
        view: Shows progress.
        reserved: Images of the test, whose views in the chosen setting the budget must still allow.
        labelled: Whether labels are read; without, the consistency over two halves of the crops is computed instead.
        cross_fit: Judges settings with an adapter; None: there are none.
    """

    def __init__(
        self,
        settings: Settings,
        cache: SweepCache,
        images: LabelledImages,
        *,
        folder: Path,
        budget: Budget,
        view: SearchView,
        reserved: int = 0,
        labelled: bool = True,
        cross_fit: CrossFit | None = None,
    ) -> None:
        self.settings, self.cache, self.images, self.folder = settings, cache, images, folder
        self.budget, self.view, self.reserved, self.labelled = budget, view, reserved, labelled
        self.rate, self.rows, self.cross_fit = float("inf"), list(range(len(images))), cross_fit
        self.failed: list[Setting] = []
        self.supported: set[Crops] = set()  # whose support images are encoded

    def run(self, wanted: Sequence[Setting]) -> Scored:
        """Score settings, as many as the budget allows."""
        make_folder(self.folder, KNOB)
        scores: dict[Setting, Arrays] = {}
        by_sides: dict[Any, list[Setting]] = {}
        for setting in wanted:
            if not setting.adapter:
                by_sides.setdefault(setting.crops.sides, []).append(setting)
        for sides, of_range in by_sides.items():
            numbers = sorted({setting.crops.n_crops for setting in of_range}, reverse=True)
            largest = next((n for n in numbers if self._affordable(Crops(sides, n))), None)
            if largest is not None:
                scores |= self._range([s for s in of_range if s.crops.n_crops <= largest], Crops(sides, largest))
        for host in dict.fromkeys(setting.zero_shot for setting in wanted if setting.adapter):
            if self.cross_fit and any(setting.crops == host.crops for setting in scores):
                scores |= self._adapted(self.cross_fit, host, [s for s in wanted if s.adapter and s.zero_shot == host])
        kept = [setting for setting in wanted if setting in scores]
        table = {name: np.stack([scores[setting][name] for setting in kept]) for name in COLUMNS}
        clusters = [self.images.clusters[i] for i in self.rows] if self.images.clusters else []
        labels = np.asarray([self.images.labels[i] for i in self.rows])
        left_out = [setting for setting in wanted if setting not in scores and setting not in self.failed]
        return Scored(kept, **table, labels=labels, clusters=clusters, left_out=left_out)

    def _affordable(self, crops: Crops) -> bool:
        return crops.n_crops == 0 or self.budget.allows((len(self.images) + self.reserved) * crops.n_views, self.rate)

    def _range(self, wanted: Sequence[Setting], largest: Crops) -> dict[Setting, Arrays]:
        """The scores of settings whose crops are those of one bank."""
        session = Session(with_setting(self.settings, next(s for s in wanted if s.crops == largest)), self.cache)
        with self.view.paused(f"{largest}: {len(self.images)} images x {largest.n_views} views"):
            started = time.perf_counter()
            bank = session.bank(self.images)
        self.rows, views = bank.positions, bank.tensors()[0]
        if not bank.reused:
            self.budget.spent += len(bank) * bank.n_views
            self.rate = len(bank) * bank.n_views / (time.perf_counter() - started)
        found: dict[Setting, Arrays] = {}
        labels = np.asarray(bank.labels)
        text, scale = session.text, session.encoder.logit_scale
        gap = cache(lambda n_views: float(entropy_gap(views[:, :n_views], text, scale).mean()))  # equal for all aggregators
        for crops, name, knobs in dict.fromkeys((s.crops, s.aggregator, s.knobs) for s in wanted):
            same = [s for s in wanted if (s.crops, s.aggregator, s.knobs) == (crops, name, knobs)]
            scores = self._saved(same, partial(self._scores, views[:, : crops.n_views], labels, same, gap))
            found |= {setting: {key: values[row] for key, values in scores.items()} for row, setting in enumerate(same)}
            self._advance(len(same), found, labels)
        return found

    def _adapted(self, cross_fit: CrossFit, host: Setting, wanted: Sequence[Setting]) -> dict[Setting, Arrays]:
        """The scores of adapters on one setting; one that cannot be fitted on these images is left out."""
        further = 0 if host.crops in self.supported else cross_fit.to_encode
        if not self.budget.allows((further + self.reserved) * host.crops.n_views, self.rate):
            return {}
        session = Session(with_setting(self.settings, host), self.cache)
        with self.view.paused(f"adapters on {host}: {further} further images x {host.crops.n_views} views"):
            fresh = [len(bank) for bank in map(session.bank, (cross_fit.support, cross_fit.validation)) if not bank.reused]
        self.budget.spent += sum(fresh) * host.crops.n_views
        self.supported.add(host.crops)
        known, found = cache(partial(cross_fit.known, session)), {}
        for setting in wanted:
            compute = partial(self._adapted_scores, cross_fit, setting, known)
            try:
                scores = self._saved([setting], compute)
            except ValueError as error:
                log.warning("%s is left out: %s", setting, error)
                self.failed.append(setting)
                continue
            found[setting] = {key: values[0] for key, values in scores.items()}
            self._advance(1, found, np.asarray([self.images.labels[i] for i in self.rows]))
        return found

    def _adapted_scores(self, cross_fit: CrossFit, setting: Setting, known: Callable[[], Known]) -> Arrays:
        session, judged = Session(with_setting(self.settings, setting), self.cache), known().judged
        gap = float(entropy_gap(judged.views, session.text, session.encoder.logit_scale).mean())
        logits = cross_fit.logits(session, known())[None]
        return columns(logits, judged.labels.numpy(), consistency=np.ones(1), gap=gap)

    def _advance(self, count: int, found: dict[Setting, Arrays], labels: np.ndarray) -> None:
        accuracy = {setting: float((scores["predictions"] == labels).mean()) for setting, scores in found.items()}
        best = max(accuracy, key=accuracy.__getitem__)
        self.view.advance(count, str(best), accuracy[best])

    def _saved(self, same: Sequence[Setting], compute: Callable[[], Arrays]) -> Arrays:
        """Scores of one setting, or of several that differ in the fusion weight: those of an earlier process, or computed and saved."""
        first = with_setting(self.settings, same[0])
        facts = [self.folder.name, first["crop"], first["aggregator"], [s.fusion_weight for s in same], self.labelled]
        if same[0].adapter:
            facts += [first["adapter"], first["seed"], *(first.task[name] for name in ("shots", "folds"))]
        meaning = json.dumps(facts)
        path = self.folder / f"{content_hash(meaning)}.sealed"
        if path.is_file():
            try:
                with np.load(io.BytesIO(read_sealed(path, meaning))) as arrays:
                    return dict(arrays)
            except DamagedFileError:
                set_aside(path, "is damaged, and its settings are scored again", KNOB)
        scores = compute()
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **scores)
        with naming(path, KNOB):
            write_sealed(path, packed.getvalue(), meaning)
        return scores

    def _scores(self, views: Views, labels: np.ndarray, same: Sequence[Setting], gap: Callable[[int], float]) -> Arrays:
        """The columns of settings that differ in the fusion weight alone."""
        weights = [setting.fusion_weight for setting in same]
        logits_of = partial(fused_logits, Session(with_setting(self.settings, same[0]), self.cache), weights=weights)
        logits, n_views = logits_of(views), views.shape[1]
        consistency = np.ones(len(same))
        if not self.labelled and n_views > 2:
            crops = views[:, 1:].tensor_split(2, dim=1)
            one, two = (logits_of(torch.cat([views[:, :1], half], 1)).argmax(-1).numpy() for half in crops)
            consistency = np.asarray([agreement(*pair) for pair in zip(one, two, strict=True)])
        return columns(logits, labels if self.labelled else None, consistency=consistency, gap=gap(n_views))
