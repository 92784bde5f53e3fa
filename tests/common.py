"""Shape checks on every module that names shapes, and small encoders and data that the tests share."""

import gc
import os
import pickle
import re
import warnings
from functools import cache
from pathlib import Path

from jaxtyping import install_import_hook

SOURCE = Path(__file__).parent.parent / "src"
SHAPED = [path for path in (SOURCE / "multicrop").rglob("*.py") if "from jaxtyping import" in path.read_text()]
# Checks on the other modules, which pyright reads, would be the larger half of their cost.
install_import_hook([".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SHAPED], "shapes.first_calls")

import conf_files  # noqa: E402
import matplotlib  # noqa: E402
import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from pictures import pictures as pictures  # noqa: E402

from multicrop.data.embedded import artwork  # noqa: E402

artwork.load_drawings = cache(artwork.load_drawings)  # decoded once per process: seconds for each data set otherwise

from multicrop.config import PACKAGE, register_resolvers  # noqa: E402
from multicrop.contracts import options as contracts  # noqa: E402
from multicrop.contracts.problems import random_encoder as random_encoder  # noqa: E402
from multicrop.contracts.problems import random_text as random_text  # noqa: E402
from multicrop.contracts.problems import tiny_encoder as tiny_encoder  # noqa: E402
from multicrop.contracts.problems import unit as unit  # noqa: E402
from multicrop.encoder import load_encoder as load_encoder  # noqa: E402

ROOT = PACKAGE.parent.parent
CONF = ROOT / "conf"
EXPECTED = re.compile(r"^# Expected: (.*\b\d\d?\.\d{1,2}\b|.*multicrop published --experiment \w|no published figure)", re.M)
warnings.filterwarnings("ignore", module="lightning")
torch.set_num_threads(1)
os.environ.setdefault("MPLCONFIGDIR", matplotlib.get_cachedir())  # tests change HOME: without it the fonts are listed anew each time
conf_files.read_once()
register_resolvers()  # as run.py does first
gc.freeze()  # what is imported for all tests is not looked through again
gc.set_threshold(50_000, 20, 20)  # a composition makes 100,000 objects


def options(group: str) -> list[str]:
    """All options of a config group: every file is tested, a new one by itself."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides):
    """The configuration of a run, composed once per process; copies that the contracts make take several times as long."""
    return pickle.loads(_composed(overrides))  # noqa: S301


@cache
def _composed(overrides):
    return pickle.dumps(contracts.composed(*overrides))


@cache
def node(group: str, option: str):
    """What an option composes to, in its own group: a file without defaults is that by itself."""
    path = CONF / group / f"{option}.yaml"
    if not re.search("^(defaults:|# @package)", path.read_text(), re.MULTILINE):
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return OmegaConf.to_container(composed(f"{group}={option}"), resolve=False).get(group)


def load(*overrides):
    """The data set that the overrides compose; an error as its loader raises it, without Hydra's wrapping."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from multicrop.config import without

    try:
        return instantiate(without(composed(*overrides).dataset, "facts"))
    except InstantiationException as error:
        raise error.__cause__ from None


def session_of(*overrides):
    """The parts of a run, as these overrides configure it."""
    from multicrop.runs.session import Session
    from multicrop.runs.settings import settings_of

    return Session(settings_of(composed(*overrides)))
