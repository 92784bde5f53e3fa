"""The house: no module lies loose at the top, the configuration stops at the entries, and the import contract names every room."""

import ast
import re
import tomllib

import pytest
import shapes
import torch
from conftest import ROOT
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from multicrop.transport import uniform_marginal

PACKAGE = ROOT / "src" / "multicrop"
LOOSE = {"__init__", "model"}
# Modules of runs/: the entries, and what helps them.
READS_CONFIGURATION = {"beside", "experiment", "finished_jobs", "settings", "source", "sweep"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."), ast.parse(path.read_text(encoding="utf-8"))


def test_no_module_lies_beside_the_rooms():
    assert {path.stem for path in PACKAGE.glob("*.py")} == LOOSE


def test_shapes_and_types_of_arrays_are_checked_in_the_first_calls_of_each_test():
    mask, wrong = torch.ones(3, dtype=torch.bool), torch.ones(3)
    for _ in range(2):  # tests
        for _ in range(shapes.CALLS - 1):
            uniform_marginal(mask)
        with pytest.raises(TypeCheckError):
            uniform_marginal(wrong)
        uniform_marginal(mask)
        uniform_marginal(wrong)
        shapes.begin_test()


def test_shapes_of_results_are_checked_too():
    @jaxtyped(typechecker=shapes.first_calls)
    def doubled(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.cat([x, x])

    with pytest.raises(TypeCheckError, match="return value"):
        doubled(torch.ones(3))


def test_the_configuration_stops_at_the_entries():
    names = {name for name, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "omegaconf"}
    assert {name for name in names if not name.startswith("config.")} == {f"runs.{name}" for name in READS_CONFIGURATION}


@pytest.mark.parametrize("script", ["Makefile", *(f"tools/{path.name}" for path in sorted((ROOT / "tools").glob("*.sh")))])
def test_what_scripts_name_of_the_package_exists(script):
    named = re.findall(r"src/multicrop[\w/.-]*", (ROOT / script).read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def private(name):
    return name.startswith("_") and not name.endswith("_")


def test_private_parts_of_libraries_are_read_in_the_files_that_say_why():
    """multicrop_loader.py: Hydra's loader and sweeper (test_sweeps.py); dashboard.py: the JSON of a W&B workspace (test_loggers.py)."""
    imported, called = set(), set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in nodes:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if any(private(part) for name in modules + names for part in name.split(".")):
                imported.add(path.name)
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
                called |= set() if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else {(path.name, node.attr)}
    assert imported == {"multicrop_loader.py"} and called == {("dashboard.py", "_to_model")}


def test_the_contract_names_every_room_once_on_twelve_rungs():
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = [room.strip().removeprefix("multicrop.") for rung in contract["layers"] for room in rung.split("|")]
    found = {path.stem for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()} | LOOSE - {"__init__"}
    assert len(contract["layers"]) == 12 and sorted(rooms) == sorted(found)
