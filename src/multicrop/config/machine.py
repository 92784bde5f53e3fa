"""What a configuration needs of this machine: a GPU, a login at W&B."""

import netrc
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")  # below /dev, of NVIDIA's driver, AMD's, and Windows' for Linux


def check_machine(cfg: DictConfig) -> None:
    """Check that the machine has what the configuration asks for.

    Args:
        cfg: The composed configuration.

    Raises:
        ValueError: If it asks for a GPU or a W&B project, and there is no GPU or login.
    """
    elsewhere = OmegaConf.select(cfg, "engine.num_gpus")  # of a cluster, whose other nodes encode
    if OmegaConf.select(cfg, "trainer.accelerator") == "gpu" and not elsewhere and not _has_gpu():
        raise ValueError("trainer.accelerator=gpu needs a GPU, and none is visible on this machine. Write trainer=cpu")
    project = OmegaConf.select(cfg, "logger.project")
    if project and wandb_mode(project) == "online" and not has_login():
        raise ValueError(
            f"logger.project={project} needs a login at W&B, and there is none (neither WANDB_API_KEY nor `wandb login`). Log in, set "
            "WANDB_MODE=offline in the environment, or write logger.project=null (offline) or logger=none (no W&B)"
        )


def _has_gpu() -> bool:
    """Whether a driver shows a GPU; True where only torch can tell."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or sys.platform == "darwin":
        return False
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in GPU_FILES)


def wandb_mode(project: str | None) -> str:
    """The variable WANDB_MODE if it is set; else online with a project, a key or a login; else offline, without asking for a login."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if project or has_login() else "offline"


def has_login() -> bool:
    """Whether W&B can log in: by a key in the environment, or by a file that `wandb login` wrote."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc(os.environ.get("NETRC")).hosts)
    except (OSError, netrc.NetrcParseError):
        return False
