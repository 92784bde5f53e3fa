"""The first second of the command line, versions and help without heavy imports, and the Python of docs/api.md as it is printed."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import multicrop
from multicrop import cli

HEAVY = ("torch", "scipy", "transformers", "lightning", "matplotlib")
HYDRAS = ("run", "mock-run")
COMMANDS = (
    *(
        "bank",
        "compare",
        "dashboard",
        "data",
        "describe",
        "explore",
        "export",
        "import",
        "ls",
        "predict",
        "published",
        "record",
        "report",
        "show",
        "trust",
    ),
    *HYDRAS,
)


def imported(start: str) -> set[str]:
    """Which of the heavy libraries a new process has imported after it ran this code."""
    code = f"import sys\ntry:\n    {start}\nexcept SystemExit:\n    pass\nprint('imported', *(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_both_commands_say_their_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert not ended.value.code and capsys.readouterr().out == f"multicrop {multicrop.__version__}\n"
    done = subprocess.run([sys.executable, "run.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"multicrop {multicrop.__version__}\n"


def test_help_lists_every_command_without_its_imports(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {name}" in shown for name in COMMANDS)
    assert imported("from multicrop.cli import main; main(['--help'])") == set()


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {*HYDRAS}))
def test_each_command_has_a_page_of_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0 and f"usage: multicrop {command}" in capsys.readouterr().out


def test_a_command_that_does_not_exist_is_refused_with_the_list(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["comapre"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "'comapre'" in said and "'compare'" in said


def test_an_experiments_help_imports_nothing_heavy():
    assert imported("sys.argv[1:] = ['--help']; import runpy; runpy.run_path('run.py', run_name='__main__')") == set()


def test_the_python_of_the_page_of_the_api_runs_as_it_is_printed(capsys):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    (snippet,) = [code for code in snippets if "load_encoder" in code]
    found = {}
    exec(compile(snippet, "api.md", "exec"), found)  # noqa: S102
    animals, said = found["animals"], ast.literal_eval(capsys.readouterr().out)
    right = [name == animals.class_names[label] for name, label in zip(said, animals.test.labels, strict=False)]
    assert len(right) == 8 and sum(right) >= 3  # chance: less than 0.1
    assert found["logits"].shape == (8, len(animals.class_names))
