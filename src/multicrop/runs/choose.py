"""`task=choose`: which way of looking is best on a data set, chosen on validation images and reported once on the test images."""

import logging
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
from multicrop.runs.choose_adapters import CrossFit
from multicrop.runs.choose_budget import Budget
from multicrop.runs.choose_columns import fused_logits
from multicrop.runs.choose_found import Found
from multicrop.runs.choose_scores import Scored, Search
from multicrop.runs.choose_settings import LABELS, SCORES, ChooseKnobs, settings_to_try, with_setting
from multicrop.runs.chosen_task import OfChoice, chosen_task
from multicrop.runs.experiment import evaluate
from multicrop.runs.identity import run_identity
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.runs.task import task_builder
from multicrop.show.choosing import SearchView, choice_table, show_choice

log = logging.getLogger(__name__)
DESCRIBED, TEMPLATE = "multicrop.text.prompts.described", "multicrop.text.templates.template"
SEARCH_PARTS = ("encoder", "texts", "support", "crops", "code")  # what decides the scores of a setting beside the setting
SOURCES = ("description_set", "file", "extend")  # of descriptions, beside the data set's own


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
        raise ValueError(f"{dataset.name} has no validation and no training images to choose on; pass task.labels=none, or other data")
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


def cross_fit(session: Session, images: LabelledImages) -> CrossFit | None:
    """What judges adapters on the images; None where the task lists no adapter, or reads no labels.

    Raises:
        ValueError: If a class has too few images for a support set.
    """
    task = session.settings.task
    if task["labels"] == "none" or not task["adapters"]:
        return None
    knobs = {"shots": task["shots"], "folds": task["folds"], "seed": session.settings["seed"]}
    of_data = [session.settings.part(group).values for group in ("dataset", "corruption")]
    key = [*of_data, session.settings.config.get("classes"), images.fingerprint, knobs]
    return session.share("cross_fit", key, lambda: CrossFit(session.dataset, images, **knobs))


def images_read(session: Session, **knobs: Any) -> tuple[LabelledImages, ...]:
    """The images that settings are chosen on, and those that adapters learn from."""
    (images,) = images_to_choose_on(session, **knobs)
    try:
        learned = cross_fit(session, images)
    except ValueError:
        learned = None
    return (images, learned.support, learned.validation) if learned else (images,)


@task_builder(groups=("adapter",), seed=True, images=images_read)
def build(session: Session, *, found: Found, **knobs: Annotated[Any, KnobsOf(ChooseKnobs)]) -> OfChoice:
    """The task of the chosen setting, once it is chosen."""
    return chosen_task(session, found)


def run(settings: Settings, cache: SweepCache | None = None) -> float:
    """Choose a setting on validation images, score it on the scored images, and write its record with chosen.yaml.

    Args:
        settings: The configuration of the run.
        cache: Shares data set, model, texts and banks with other runs; None: with no other run.

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
    judge = _judge(session, images)
    described, adapters = all(len(row) > 1 for row in session.prompts), settings.task["adapters"] if judge else ()
    wanted = settings_to_try(settings.task["search"], described=described, adapters=adapters)
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
            cross_fit=judge,
        ).run(wanted)


def _judge(session: Session, images: LabelledImages) -> CrossFit | None:
    """What judges adapters; None, with a warning, where the data set has too few images to fit any."""
    if unknown := [name for name in session.settings.task["adapters"] if name not in session.settings.task["few_shot"]]:
        known = ", ".join(session.settings.task["few_shot"])
        raise ValueError(f"task.adapters names {', '.join(unknown)}, which conf/task/choose.yaml does not list; it lists {known}")
    try:
        return cross_fit(session, images)
    except ValueError as error:
        log.warning("adapters take no part: %s", error)
        return None


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
    kind = "validation images" if len(dataset.validation) else f"training images ({dataset.name} has no validation images)"
    setting = scored.settings[choice.chosen]
    own = Session(with_setting(session.settings, setting), session.cache)
    bank, judge = own.bank(images), cross_fit(session, images) if setting.adapter else None
    weights = [setting.fusion_weight]
    logits = judge.logits(own, judge.known(own)) if judge else fused_logits(own, bank.tensors()[0], weights=weights)[0]
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
