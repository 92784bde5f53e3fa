"""The fitted adapter of a choice: a file beside chosen.yaml, which says what it was fitted for."""

import hashlib
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from multicrop.adapters.base import Adapter
from multicrop.files import DamagedFileError, content_hash
from multicrop.record import ADAPTER
from multicrop.runs.identity import run_identity
from multicrop.runs.predictor import adapter_of_run, new_adapter
from multicrop.runs.session import Session

NODE = "fitted"  # of chosen.yaml
PARTS = ("encoder", "texts", "crops", "aggregator", "adapter")  # what the fit depends on beside the support set and values of the task
KNOBS = ("fusion_weight", "shots")


def saved(session: Session, adapter: Adapter) -> tuple[bytes, dict[str, Any]]:
    """The file of a fitted adapter, and what chosen.yaml says of it."""
    payload = save({name: value.contiguous().clone() for name, value in adapter.learned_tensors().items()})
    facts = {"file": ADAPTER, "hash": _hash(payload), "of": _key(session), "chosen": dict(adapter.selection["chosen"])}
    return payload, facts


def of_configuration(session: Session, config: str | Path | None) -> Adapter | None:
    """The adapter of a few-shot configuration: saved with a choice, or fitted as its run fits it; None for other configurations."""
    if config is None or session.settings.task["name"] != "few_shot":
        return None
    return restored(session, Path(config)) or adapter_of_run(session)


def restored(session: Session, config: Path) -> Adapter | None:
    """The adapter that a choice has fitted; None where the configuration names none, was changed since, or lies without the file.

    Args:
        session: The parts of the configuration.
        config: The file of the configuration, or the folder of a record.

    Raises:
        DamagedFileError: If the file is not what was saved.
    """
    facts, path = session.settings.config.get(NODE), (config if config.is_dir() else config.parent) / ADAPTER
    if not facts or not path.is_file() or facts["of"] != _key(session):
        return None
    payload = path.read_bytes()
    if _hash(payload) != facts["hash"]:
        raise DamagedFileError(f"{path} is not the adapter that {config.name} names: restore it, or remove it to fit the adapter again")
    adapter = new_adapter(session, "", search=False)
    adapter.restore(load(payload), facts["chosen"])
    return adapter


def _key(session: Session) -> str:
    """A hash of what an adapter is fitted for; the support set is not read again."""
    task = session.settings.task
    return content_hash(run_identity(session, *PARTS).key, *(task[name] for name in KNOBS), session.settings["seed"])


def _hash(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
