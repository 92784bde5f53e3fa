"""tools/setup.sh says plainly what is missing, and does nothing when the environment is up to date."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT


@pytest.fixture
def clone(tmp_path):
    """A folder with the files that the set-up reads."""
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    return tmp_path


def setup(clone, **environment):
    env = os.environ | environment
    return subprocess.run(["sh", "tools/setup.sh", ".venv"], cwd=clone, env=env, capture_output=True, text=True, timeout=300)


def without_python(clone):
    """A PATH that has the shell's tools and no Python."""
    tools = clone / "bin"
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "df", "awk", "grep", "tail", "pwd"):
        (tools / name).symlink_to(shutil.which(name))
    return str(tools)


def test_no_python_is_said_with_the_way_to_name_one(clone):
    done = setup(clone, PATH=without_python(clone), PYTHON="")
    assert done.returncode == 1 and "no Python 3.11, 3.12 or 3.13" in done.stderr and "PYTHON=" in done.stderr


def test_too_little_disk_is_said_with_what_is_needed(clone):
    done = setup(clone, MULTICROP_DISK_MB="999999999")
    assert done.returncode == 1 and "4 GB of disk" in done.stderr and "MB free" in done.stderr


def test_no_network_is_said(clone):
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
    done = setup(clone, **closed)
    assert done.returncode == 1 and "package registry could not be reached" in done.stderr
    assert not (clone / ".venv" / ".installed").exists()


def test_an_up_to_date_environment_is_left_alone(clone):
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/true")
    words = subprocess.run(
        ["sh", "-c", "cat pyproject.toml constraints.txt | cksum"], cwd=clone, capture_output=True, text=True, check=True
    )
    (clone / ".venv" / ".installed").write_text(f"{words.stdout.strip()}-{clone.resolve()}")
    done = setup(clone)
    assert done.returncode == 0 and not done.stdout
    (clone / "constraints.txt").write_text("")
    assert setup(clone, MULTICROP_DISK_MB="999999999").returncode == 1
