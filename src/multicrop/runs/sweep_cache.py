"""What the jobs of a sweep share in one process: data set, model, texts and banks of equal configurations are made once."""

import json
from collections.abc import Callable
from typing import TypeVar
from weakref import ref

from omegaconf import DictConfig, OmegaConf
from torch import nn

from multicrop.config import in_sweep
from multicrop.files import content_hash

MOST = 4  # of each kind, the latest used
Part = TypeVar("Part")
_KEPT: dict[str, dict[str, tuple[object, object, object]]] = {}


def shared(kind: str, node: DictConfig | list, make: Callable[[], Part], *, of: nn.Module | None = None) -> Part:
    """What `make` gives for the configuration `node`; in a sweep the one that an earlier job made.

    A model whose weights a job has changed is made anew, and so is what was made with a model, `of`, that is another one now or has
    changed. A single run keeps nothing.
    """
    if not in_sweep():
        return make()
    kept = _KEPT.setdefault(kind, {})
    key = content_hash(json.dumps(OmegaConf.to_container(node, resolve=True)) if isinstance(node, DictConfig) else node)
    part, source, mark = kept.pop(key, (None, None, None))
    if part is None or (source and source()) is not of or mark != (_mark(part), _mark(of)):
        part = make()
    kept[key] = (part, ref(of) if of is not None else None, (_mark(part), _mark(of)))
    while len(kept) > MOST:
        kept.pop(next(iter(kept)))
    return part


def forget() -> None:
    """Let go of everything."""
    _KEPT.clear()


def _mark(part: object) -> object:
    """What changes when the weights of a module are changed in place, replaced or renamed; None of anything else."""
    if not isinstance(part, nn.Module):
        return None
    return [(name, id(p), p.data_ptr(), p._version, p.requires_grad) for name, p in part.named_parameters()]
