"""The first second of the command line: versions, and pages of help that import neither torch nor SciPy."""

import subprocess
import sys

import pytest
from conftest import ROOT

import multicrop
from multicrop import cli

HEAVY = ("torch", "scipy", "transformers", "lightning", "matplotlib")
COMMANDS = ("bank", "compare", "dashboard", "data", "describe", "published", "record", "report")


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


@pytest.mark.parametrize("command", COMMANDS)
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
