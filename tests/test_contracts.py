"""Contracts over every file in conf/: a new crop policy, aggregator, adapter or method is tested by being there.

Those of components are in the package (multicrop.contracts), where they also run on the components of others.
"""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import CONF, ROOT, composed, node, options
from refusals import refused

from multicrop.config import TASK_OF, check_overrides, check_parts
from multicrop.contracts.test_adapters import TestAdapters as TestAdapters
from multicrop.contracts.test_aggregators import TestAggregators as TestAggregators
from multicrop.contracts.test_crops import TestCrops as TestCrops
from multicrop.contracts.test_data_and_models import TestModels as TestModels
from multicrop.contracts.test_methods import TestMethods as TestMethods

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_every_option_composes_and_says_what_it_is(group, option):
    node(group, option)
    assert (CONF / group / f"{option}.yaml").read_text().startswith("# ")


COMPONENTS = ["adapter", "aggregator", "corruption", "crop", "dataset", "method", "model", "prompt", "task", "trainer"]


@pytest.mark.parametrize("group", COMPONENTS)
def test_options_that_compose_to_the_same_body_say_that_one_is_an_alias(group):
    for one, two in itertools.combinations(options(group), 2):
        if node(group, one) == node(group, two):
            headers = [(CONF / group / f"{option}.yaml").read_text() for option in (one, two)]
            assert any(re.search(rf"\balias of {other}\b", text) for other, text in zip((two, one), headers, strict=True)), (one, two)


def test_no_two_files_have_the_same_body():
    bodies = {}
    for path in sorted(CONF.rglob("*.yaml")):
        body = yaml.safe_load(path.read_text())
        bodies.setdefault(json.dumps([path.relative_to(CONF).parts[0], body], sort_keys=True), []).append(path.name)
    assert not [names for names in bodies.values() if len(names) > 1]


def targets(node):
    """Every `_target_` below a node of plain values."""
    if isinstance(node, dict):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    for value in node if isinstance(node, list) else []:
        yield from targets(value)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_a_target_is_the_full_path_of_what_is_defined_there(path):
    for target in targets(yaml.safe_load(path.read_text())):
        module, _, name = target.rpartition(".")
        assert getattr(importlib.import_module(module), name).__module__ == module, target


@pytest.mark.parametrize("task", options("task"))
def test_a_run_holds_an_adapter_or_a_method_only_where_its_task_reads_it(task):
    cfg = composed(f"task={task}")
    assert {group for group in TASK_OF if cfg.get(group) is not None} == {group for group, reader in TASK_OF.items() if reader == task}
    check_parts(cfg, {})


@pytest.mark.parametrize(("group", "option", "task"), [("adapter", "lp_pp", "few_shot"), ("method", "bca", "tta")])
def test_an_adapter_or_a_method_is_chosen_with_its_task_and_refused_without(group, option, task):
    chosen = composed(f"task={task}", f"{group}={option}")
    assert chosen[group] == composed(f"{group}={option}")[group] != composed(f"task={task}")[group]
    check_parts(chosen, {})
    check_overrides([f"task={task}", f"{group}={option}"], CONF)
    check_overrides(["-m", "sweep=streams", f"{group}={option}"], CONF)
    for wrong in ([f"{group}={option}"], ["-m", f"task=zero_shot,{task}", f"{group}={option}"]):
        with refused(f"{group}={option} needs task={task}, got task=zero_shot", f"add task={task}"):
            check_overrides(wrong, CONF)
    with refused(f"{group} needs task={task}"):
        check_overrides([f"{group}.knob=1"], CONF)


def test_help_fits_a_screen_and_names_groups_and_studies():
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    said = subprocess.run([sys.executable, "run.py", "--help"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100).stdout
    lines = said.rstrip().splitlines()
    assert sum(max(1, -(-len(line) // 80)) for line in lines) <= 46
    named = [line.split(":")[0] for line in lines]
    studies = [f"experiment/{path.name}" for path in sorted((CONF / "experiment").iterdir())]
    assert set(GROUPS) - {"experiment", "hydra"} | set(studies) <= set(named)
