"""The Hydra entry: compose the configuration, run one experiment or a sweep of them, return its accuracy to the sweeper."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

import multicrop
from multicrop.config import check_overrides, help_page, register_experiments, register_resolvers
from multicrop.runs.errors import tell
from multicrop.runs.secrets import hide_secrets
from multicrop.runs.sweep import exit_status, job

CONF = Path(__file__).parent / "conf"

register_resolvers()


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """One experiment."""
    return job(cfg)


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print(f"multicrop {multicrop.__version__}")
        sys.exit()
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(help_page(CONF))
        sys.exit()
    sys.path.append(str(Path.cwd()))  # components of the user's own, which a file of --config-dir names by dotted path
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors instead of printing them
    try:
        sys.argv[1:] = hide_secrets(sys.argv[1:], groups=[path.name for path in CONF.iterdir() if path.is_dir()])
        sys.argv[1:] = register_experiments(sys.argv[1:])
        check_overrides(sys.argv[1:], CONF)
        main()
    except Exception as error:  # noqa: BLE001
        sys.exit(tell(error))
    sys.exit(exit_status())
