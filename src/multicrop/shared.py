"""What the jobs of a sweep share in one process: the data set, the model and the texts of equal configurations are made once."""

from collections.abc import Callable
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from torch import nn

from multicrop.config import in_sweep
from multicrop.datasets.base import content_hash

MOST = 4  # of each kind, the latest used
Part = TypeVar("Part")
_KEPT: dict[str, dict[str, tuple[object, object]]] = {}


def shared(kind: str, node: DictConfig | list, make: Callable[[], Part]) -> Part:
    """What `make` gives for the configuration `node`; in a sweep the one that an earlier job made.

    A model whose weights a job has changed is made anew. A single run keeps nothing.
    """
    if not in_sweep():
        return make()
    kept = _KEPT.setdefault(kind, {})
    key = content_hash(OmegaConf.to_yaml(node, resolve=True) if isinstance(node, DictConfig) else node)
    part, mark = kept.pop(key, (None, None))
    if part is None or mark != _mark(part):
        part = make()
    kept[key] = (part, _mark(part))
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
