"""The identity of a run: what decides its numbers, as a hash per part. Finished runs, stream saves and fits are keyed by it."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from hydra.utils import instantiate

from multicrop.config import BESIDE, PACKAGE
from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.encoder.known import EncoderFacts
from multicrop.files import Identity, content_hash
from multicrop.runs.session import Session
from multicrop.runs.sources import sources_of
from multicrop.runs.task import Reads, reads_of
from multicrop.runs.transfer import source_session

CODE_GROUPS = ("dataset", "corruption", "model", "prompt", "task")  # what these make is in the parts; their own code is in `code`
FIT_PARTS = ("encoder", "texts", "support", "crops", "aggregator", "adapter", "task", "code")  # a fit never reads the scored images
TUNING_PARTS = ("encoder", "texts", "support", "adapter", "code")  # nor do crops and aggregator enter the fit of an encoder


def run_identity(session: Session, *names: str) -> Identity:
    """Name what decides the numbers of a run.

    Args:
        session: The parts of the run; its task is not built.
        names: The parts to name, by default all. Only these are read: the key of a fit, for instance, never reads the scored images.

    Returns:
        A hash per part. ``data`` is what is scored: images, labels and class names; ``support`` (few-shot) what is learned from. The part
        ``adapter`` or ``method`` is there where the task reads one, ``beside`` where further aggregators have rows. The run's ``seed``
        enters the part ``task`` where the task reads it, or where code outside this package takes part, which may draw from a global
        generator.
    """
    settings = session.settings
    reads = reads_of(instantiate(settings.task["build"]))
    groups = ("crop", "aggregator", *(group for group in reads.groups if settings.config.get(group)))
    sources = {group: sources_of(settings.config.get(group)) for group in (*groups, *CODE_GROUPS)}
    parts: dict[str, Callable[[], str]] = {
        "data": lambda: _images_hash(session.scored_images, session.dataset.class_names),
        "texts": lambda: _texts_hash(session),
        "encoder": lambda: session.facts.fingerprint,
        "crops": lambda: _crops_hash(session, sources["crop"]),
        "task": lambda: _task_hash(session, reads, with_seed=reads.seed or any(sources.values())),
        "code": lambda: content_hash(_code(), json.dumps([sources[group] for group in CODE_GROUPS], sort_keys=True)),
    }
    parts |= {group: partial(_component_hash, settings.part(group).values, sources[group]) for group in groups[1:]}
    parts |= {"support": partial(_support_hash, session, reads.images)} if reads.images else {}
    parts |= {"unknown": lambda: _unknown_hash(session)} if settings.config.get("ood") else {}
    parts |= {"beside": partial(_beside_hash, session)} if settings.beside else {}
    return Identity({name: make() for name, make in parts.items() if not names or name in names})


def model_facts(facts: EncoderFacts) -> dict[str, Any]:
    """What the record says of the model: name, architecture, number of parameters, hash of the weights, precision."""
    return {name: getattr(facts, name) for name in ("name", "architecture", "parameters", "weights", "precision")}


def _texts_hash(session: Session) -> str:
    """The prompts with their kinds and the members of means, as their representations give them, and how they are cut into tokens."""
    return content_hash(session.prompts, session.facts.tokens)


def _images_hash(images: LabelledImages | StreamedImages, class_names: Sequence[str]) -> str:
    """Class names, content, ids, labels, domains and clusters; a stream has its ids and labels in its fingerprint."""
    listed = [images.ids, images.labels, images.domains] if images.indexed is True else []
    listed += [images.clusters] if images.indexed is True and images.clusters else []
    return content_hash(images.fingerprint, json.dumps([list(class_names), *listed], default=lambda column: column.digest))


def _unknown_hash(session: Session) -> str:
    """The images of unknown classes."""
    images = session.unknown_images
    return "" if images is None else content_hash(images.fingerprint, json.dumps(images.ids, default=lambda column: column.digest))


def _component_hash(values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The knobs of a component, and the files that hold its code where they are outside this package."""
    return content_hash(json.dumps([values, sources], sort_keys=True))


def _beside_hash(session: Session) -> str:
    """The further aggregators: their knobs and code, in their order."""
    parts = session.settings.beside.items()
    return content_hash(*(f"{name} {_component_hash(part.values, sources_of(dict(part.values)))}" for name, part in parts))


def _support_hash(session: Session, read: Callable[..., Sequence[LabelledImages]]) -> str:
    """The images that the task learns from, and the prompts of their classes where these are not the scored ones."""
    knobs = session.settings.task_knobs
    source = source_session(session, knobs.get("source"))
    found = [_images_hash(images, source.dataset.class_names) for images in read(source, **knobs)]
    return content_hash(*found, *([] if source is session else [_texts_hash(source)]))


def _crops_hash(session: Session, sources: dict[str, str]) -> str:
    """The crop policy with its knobs and the vision transformer that it looks through, the seed, and how views are cut and stored."""
    settings, look = session.settings, session.sampler.look
    values = json.dumps([settings.part("crop").values, sources], sort_keys=True)
    return content_hash(values, look.identity if look else None, settings["crop_seed"], settings["bank"], settings.compute.cut)


def _task_hash(session: Session, reads: Reads, *, with_seed: bool) -> str:
    """The task's name, its decisive knobs, what happens to unreadable images, and the seed where it is read."""
    settings = session.settings
    knobs = {name: value for name, value in settings.task_knobs.items() if name not in reads.not_decisive}
    facts = [settings.task["name"], settings.task["fusion_weight"], knobs, settings["on_unreadable"]]
    return content_hash(json.dumps(facts, sort_keys=True), settings["seed"] if with_seed else None)


@cache
def _code() -> str:
    own = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.is_relative_to(BESIDE)]  # the same in a checkout and a wheel
    return content_hash(*(path.read_text(encoding="utf-8") for path in own))
