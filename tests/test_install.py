"""The wheel: what it holds, and `multicrop run` from it in an empty folder, with a configuration folder of the user's own."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import CONF, ROOT
from refusals import refused
from test_entry_points import install_example

from multicrop.config import check_overrides
from multicrop.runs import environment, identity

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "run.py", "src", "conf", "experiments/published.csv")
START = "from multicrop.cli import main; main()"
EXAMPLE = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which a wheel of this tree was unpacked."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, place / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copyfile(source, target)
    built = subprocess.run([sys.executable, "-c", BUILD, str(place)], cwd=place / "tree", capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(place / "site")
    return place / "site"


@pytest.fixture
def own(tmp_path):
    """A folder of the user, as docs/start.md has it: a crop policy in a module, and its file in a configuration folder."""
    for name, content in EXAMPLE.findall((ROOT / "docs" / "start.md").read_text()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_wheel_holds_the_configuration_and_what_run_py_reads(installed):
    for path in (*CONF.rglob("*.yaml"), ROOT / "run.py", ROOT / "experiments" / "published.csv"):
        assert (installed / "multicrop" / "repository" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_the_code_of_a_wheel_has_the_identity_of_the_checkouts(installed, monkeypatch):
    expected = identity._code()
    monkeypatch.setattr(identity, "PACKAGE", installed / "multicrop")
    monkeypatch.setattr(identity, "BESIDE", installed / "multicrop" / "repository")
    assert identity._code.__wrapped__() == expected


def test_multicrop_run_from_a_wheel_in_an_empty_folder_with_a_crop_policy_of_the_users_own(installed, own):
    small = ["dataset.n_classes=4", "dataset.test_images=2", "dataset.train_images=2", "dataset.validation_images=1", "logger=none"]
    words = ["run", "--config-dir", "own", "crop=left_half", *small, "trainer.progress=false", "pictures=0"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MULTICROP_")} | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", START, *words], cwd=own, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in ("global view", "│ 1 crop ", f"record: {own}"))
    (metrics,) = own.glob("outputs/*/*/metrics.json")
    assert json.loads(metrics.read_text())["views_per_image"] == 2
    assert yaml.safe_load((metrics.parent / "config.yaml").read_text())["crop"]["_target_"] == "my_crops.left_half"
    assert json.loads((metrics.parent / "environment.json").read_text())["argv"][0].startswith(str(installed))
    assert (own / ".cache" / "banks").is_dir() and not list(Path(installed, "multicrop", "repository").glob("outputs"))


def test_the_contract_tests_run_from_a_wheel_on_a_component_of_ones_own_and_on_that_of_a_package(installed, own):
    (own / "site").mkdir()
    install_example(own / "site")
    env = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{own / 'site'}", "MULTICROP_CONFIG_DIR": "own"}
    words = ["--pyargs", "multicrop.contracts", "-k", "left_half or right_half", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run([Path(sys.executable).with_name("pytest"), *words], cwd=own, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"test_same_key_same_boxes[{name}] PASSED" in done.stdout for name in ("left_half", "right_half"))
    assert "6 passed, 2 skipped" in done.stdout


class TestConfigDir:
    @pytest.mark.parametrize("flag", [["--config-dir", "{}"], ["--config-dir={}"], ["-cd", "{}"]])
    def test_options_and_their_knobs_are_known(self, own, flag):
        flags = [word.format(own / "own") for word in flag]
        check_overrides([*flags, "crop=left_half", "crop.n_crops=2"], CONF)
        with refused("crop=left_haf is not an option", "did you mean left_half?"):
            check_overrides([*flags, "crop=left_haf"], CONF)
        with refused("crop=left_half is not an option"):
            check_overrides(["crop=left_half"], CONF)

    def test_a_name_of_multicrops_own_is_refused(self, own):
        (own / "own" / "crop" / "grid.yaml").write_text("# Mine.\n")
        with refused("crop/grid.yaml", "Rename the file"):
            check_overrides(["--config-dir", str(own / "own"), "crop=grid"], CONF)

    def test_a_folder_that_is_none(self):
        with refused("--config-dir /nowhere is not a folder"):
            check_overrides(["--config-dir", "/nowhere"], CONF)

    def test_a_command_line_without_words_is_the_default_run(self):
        check_overrides([], CONF)


def test_the_revision_of_the_code_is_that_of_its_checkout_alone(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-c", "user.name=someone", "-c", "user.email=a@example.org", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(environment, "PACKAGE", package)
    git("init")
    git("commit", "--allow-empty", "--message", "a user's repository, whose environment holds the package")
    assert environment._git_revision() is None
    git("add", ".")
    git("commit", "--message", "the package")
    assert environment._git_revision() == git("rev-parse", "HEAD")
