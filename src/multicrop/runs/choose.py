"""`task=choose`: which way of looking is best on a data set, chosen on validation images and reported once on the test images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np

from multicrop.compare.choosing import choose
from multicrop.compare.label_free import choose_without_labels
from multicrop.compare.temperature import fit_temperature
from multicrop.config.ranges import KnobsOf
from multicrop.data.base import LabelledImages
from multicrop.data.limit import limited
from multicrop.files import make_folder
from multicrop.record import CHOICE, CHOSEN, Predictions
from multicrop.runs.choose_budget import Budget
from multicrop.runs.choose_found import Found
from multicrop.runs.choose_scores import Scored, Search, fused_logits
from multicrop.runs.choose_settings import LABELS, SCORES, ChooseKnobs, settings_to_try, with_setting
from multicrop.runs.chosen_file import chosen_yaml
from multicrop.runs.experiment import evaluate
from multicrop.runs.identity import run_identity
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.runs.task import task_builder
from multicrop.runs.zero_shot import ZeroShotTask
from multicrop.show.choosing import SearchView, choice_table, show_choice

DESCRIBED, TEMPLATE = "multicrop.text.prompts.described", "multicrop.text.templates.template"
SEARCH_PARTS = ("encoder", "texts", "support", "crops", "code")  # what decides the scores of a setting beside the setting
SOURCES = ("description_set", "file", "extend")  # of descriptions, beside the data set's own


class ChosenTask(ZeroShotTask):
    """Predicts with the chosen setting.

    Args:
        session: The parts of the run in the chosen setting.
        found: What the search found.
    """

    def __init__(self, session: Session, found: Found) -> None:
        super().__init__(session.scorer)
        self.found, self.settings = found, session.settings

    def recorded(self, predictions: Predictions, *, n_views: int, resumed: int) -> dict[str, Any]:
        """How the setting was chosen."""
        return {"choice": self.found.facts()}

    def files(self, predictions: Predictions) -> dict[str, str]:
        """The chosen setting as an experiment, and the table of all settings."""
        return {CHOSEN: chosen_yaml(self.settings, self.found, accuracy=predictions.accuracy()), CHOICE: self.found.table()}


def images_to_choose_on(session: Session, *, labels: str, max_images: int, like_test: bool, **_: object) -> tuple[LabelledImages]:
    """The images that settings are chosen on: validation, else training images; without labels the test images.

    Raises:
        ValueError: If ``labels`` is neither, or there are no such images.
    """
    dataset = session.dataset
    if labels not in LABELS:
        raise ValueError(f"task.labels is {' or '.join(LABELS)}, got {labels!r}")
    if labels == "none":
        if dataset.test.indexed is False:
            raise ValueError("task.labels=none reads the test images twice, and a stream is read once; use an indexed data set")
        return (limited(dataset.test, session.settings.limit),)
    pool = dataset.validation if len(dataset.validation) else dataset.train
    if not len(pool):
        raise ValueError(f"{dataset.name} brings no validation and no training images to choose on; pass task.labels=none, or other data")
    chosen = evenly(pool, min(max_images, session.settings.limit or max_images), session.settings["seed"])
    if not like_test:
        return (chosen,)
    corrupted = session.settings.part("corruption").make()(replace(dataset, test=chosen)).test
    return (corrupted,)


def evenly(images: LabelledImages, most: int, seed: int) -> LabelledImages:
    """At most so many of the images, as many of each class as of the others, drawn by the seed."""
    if len(images) <= most:
        return images
    shuffled: list[int] = np.random.default_rng(seed).permutation(len(images)).tolist()
    seen: Counter[int] = Counter()
    rank: dict[int, int] = {}
    for index in shuffled:
        rank[index] = seen[images.labels[index]]
        seen[images.labels[index]] += 1
    return images.subset(sorted(sorted(shuffled, key=rank.__getitem__)[:most]))


@task_builder(seed=True, images=images_to_choose_on)
def build(session: Session, *, found: Found, **knobs: Annotated[Any, KnobsOf(ChooseKnobs)]) -> ChosenTask:
    """The task of the chosen setting, once it is chosen."""
    return ChosenTask(session, found)


def run(settings: Settings, cache: SweepCache | None = None) -> float:
    """Choose a setting on validation images, score it on the scored images, and write its record with chosen.yaml.

    Returns:
        The accuracy of the chosen setting, from 0 to 1.
    """
    budget = Budget.of(settings.task["budget"])
    cache = cache or SweepCache()
    make_folder(settings.output, "paths.output")
    settings = without_descriptions(settings, Session(settings, cache))
    session = Session(settings, cache)
    (images,) = images_to_choose_on(session, **settings.task_knobs)
    scored = search(session, images, budget)
    found = found_in(session, images, scored)
    title = f"choose on {len(scored.labels)} {found.kind} of {session.dataset.name}: {len(scored.settings)} settings, top-1 %"
    show_choice(choice_table(title, found.rows(), found.families()), found.answer())
    return evaluate(with_setting(settings, found.setting), cache, partial(build, found=found))


def search(session: Session, images: LabelledImages, budget: Budget) -> Scored:
    """Score all settings on the images."""
    settings, cache = session.settings, session.cache or SweepCache()
    wanted = settings_to_try(settings.task["search"], described=all(len(row) > 1 for row in session.prompts))
    key = run_identity(session, *SEARCH_PARTS).key_of(*SEARCH_PARTS)
    with SearchView(len(wanted), live=settings.compute.progress) as view:
        return Search(
            settings,
            cache,
            images,
            folder=settings.cache / "choices" / key,
            budget=budget,
            view=view,
            reserved=_test_images(session),
            labelled=settings.task["labels"] != "none",
        ).run(wanted)


def found_in(session: Session, images: LabelledImages, scored: Scored) -> Found:
    """The choice among scored settings, by labels or without, with a temperature where there are labels."""
    knobs, dataset = session.settings.task, session.dataset
    if knobs["labels"] == "none":
        row = choose_without_labels(knobs["criterion"], scored.unlabelled, gate=knobs["gate"])
        return Found(scored, row, f"images without labels ({knobs['criterion']})")
    rule = {name: knobs[name] for name in ("standard_errors", "repeats", "folds", "resamples")}
    if knobs["score"] not in SCORES:
        raise ValueError(f"task.score is {' or '.join(SCORES)}, got {knobs['score']!r}")
    compared = scored.probability if knobs["score"] == "probability" else None
    choice = choose(scored.correct, scores=compared, clusters=scored.clusters, seed=session.settings["seed"], **rule)
    kind = "validation images" if len(dataset.validation) else f"training images ({dataset.name} brings no validation images)"
    setting = scored.settings[choice.chosen]
    own = Session(with_setting(session.settings, setting), session.cache)
    bank = own.bank(images)
    logits = fused_logits(own, bank.tensors()[0], weights=[setting.fusion_weight])[0]
    return Found(scored, choice.chosen, kind, choice, fit_temperature(logits.double().numpy(), np.asarray(bank.labels)))


def without_descriptions(settings: Settings, session: Session) -> Settings:
    """The same settings, with label prompts alone where neither data set nor configuration has a description."""
    values: Mapping[str, Any] = settings.part("prompt").values
    if values["_target_"] != DESCRIBED or session.dataset.descriptions or any(values.get(source) for source in SOURCES):
        return settings
    labels = {"_target_": TEMPLATE, "_partial_": True, "template": values["template"]}
    return replace(settings, config={**settings.config, "prompt": labels}, choices={**settings.choices, "prompt": "template"})


def _test_images(session: Session) -> int:
    """Images of the test that are still to be encoded; unknown for a stream, and none where settings are chosen on them."""
    test = session.scored_images
    return 0 if session.settings.task["labels"] == "none" or test.indexed is False else len(test)
