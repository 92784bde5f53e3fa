"""Shape checks on every module that names shapes, and small encoders and data that the tests share."""

import gc
import os
import re
import warnings
from functools import cache
from pathlib import Path

from jaxtyping import install_import_hook

SOURCE = Path(__file__).parent.parent / "src"
SHAPED = [path for path in (SOURCE / "multicrop").rglob("*.py") if "from jaxtyping import" in path.read_text()]
# Checks on the other modules, which pyright reads, would be the larger half of their cost.
install_import_hook([".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SHAPED], "beartype.beartype")

import conf_files  # noqa: E402
import matplotlib  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from pictures import pictures as pictures  # noqa: E402

from multicrop.data.embedded import artwork  # noqa: E402

artwork.load_drawings = cache(artwork.load_drawings)  # decoded once per process: seconds for each data set otherwise

from multicrop.config import PACKAGE  # noqa: E402
from multicrop.contracts.options import composed as composed  # noqa: E402
from multicrop.contracts.problems import random_encoder as random_encoder  # noqa: E402
from multicrop.contracts.problems import random_text as random_text  # noqa: E402
from multicrop.contracts.problems import tiny_encoder as tiny_encoder  # noqa: E402
from multicrop.contracts.problems import unit as unit  # noqa: E402
from multicrop.encoder import load_encoder as load_encoder  # noqa: E402

ROOT = PACKAGE.parent.parent
CONF = ROOT / "conf"
EXPECTED = re.compile(r"^# Expected: (.*\b\d\d?\.\d{1,2}\b|.*multicrop published --experiment \w|no published figure)", re.M)
SLOW = {"launchers", "ray_engine", "wandb_server", "bank_faults", "end_to_end", "sweeps", "report_html", "int8_static", "encoder_families"}
warnings.filterwarnings("ignore", module="lightning")
torch.set_num_threads(1)
os.environ.setdefault("MPLCONFIGDIR", matplotlib.get_cachedir())  # tests change HOME: without it the fonts are listed anew each time
conf_files.read_once()
gc.freeze()  # what is imported for all tests is not looked through again
gc.set_threshold(50_000, 20, 20)  # a composition makes 100,000 objects


def pytest_collection_modifyitems(items):
    """The slowest files first: of two workers, neither ends with a long test while the other has none left."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in SLOW)  # stable


def pytest_collection_finish():
    """Nor are the modules of the tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Say how a worker of pytest-xdist that crashed had ended, and how much memory there was: its exit code -9 is a kill from outside."""
    if error:
        code, memory = node.gateway._io.popen.wait(timeout=10), psutil.virtual_memory().available / 2**30
        reporter = node.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"[{node.gateway.id}] ended with exit code {code}; {memory:.1f} GiB of memory available")


def options(group: str) -> list[str]:
    """All options of a config group: every file is tested, a new one by itself."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def session_of(*overrides):
    """The parts of a run, as these overrides configure it."""
    from multicrop.runs.session import Session
    from multicrop.runs.settings import settings_of

    return Session(settings_of(composed(*overrides)))


@pytest.fixture(scope="session")
def encoder():
    return tiny_encoder()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)
