"""Where and how a run was made: code, machine, versions, time and memory."""

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import version

import torch

from multicrop.config import PACKAGE

PACKAGES = ("torch", "torchvision", "lightning", "transformers", "hydra-core", "POT", "numpy", "scipy")


def environment(*, seed: int, seconds: float) -> dict[str, object]:
    """The facts for the record's environment.json.

    Args:
        seed: The run's seed.
        seconds: Wall-clock time of the run.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **_installation(),
        "argv": sys.argv,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "seconds": seconds,
        "peak_memory_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }


@cache
def _installation() -> dict[str, object]:
    """What does not change while the process lives."""
    return {
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in PACKAGES},
    }


def _git_revision() -> str | None:
    """The commit of multicrop's checkout; None where it is installed, even in an environment inside another repository."""
    command = ["git", "rev-parse", "HEAD", "HEAD:./__init__.py"]  # fails where the commit does not have this file
    try:
        done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split()[0]
