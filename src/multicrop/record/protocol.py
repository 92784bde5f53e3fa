"""Versions of what decides the numbers of a run: raised where the same configuration gives other numbers than before."""

from collections.abc import Mapping
from typing import Any

VERSIONS: dict[str, int] = {}  # by the dotted path of a function or class of conf/; 1 where it is not listed


def protocol_of(config: Mapping[str, Any]) -> dict[str, int]:
    """The version of every component that a configuration names, by its dotted path: data set, crop policy, model, method, ..."""
    targets = [node["_target_"] for node in config.values() if isinstance(node, Mapping) and "_target_" in node]
    task = config.get("task") or {}
    further = [task.get("build"), *(task.get("beside") or {}).values()]
    targets += [node["_target_"] for node in further if node and "_target_" in node]  # those of an imported record are names alone
    return {target: VERSIONS.get(target, 1) for target in targets}
