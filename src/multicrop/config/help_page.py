"""The page that `run.py --help` prints: Hydra's template, filled from the files of the configuration."""

import string
from pathlib import Path

from omegaconf import OmegaConf

from multicrop.config.entry_points import components


def help_page(conf: Path) -> str:
    """The text that Hydra prints for ``--help``, made in a tenth of the time.

    Hydra copies all its registered configurations once per config group. This is the page of the files in ``conf``: with more words on
    the command line, such as ``--config-dir``, Hydra makes it.

    Args:
        conf: Folder of the configuration.

    Returns:
        The template ``help.template`` of ``conf/hydra/default.yaml``, with the groups and their options, also those of installed packages.
    """
    groups = {}
    for file in sorted(conf.glob("*/**/*.yaml")):
        groups.setdefault(file.parent.relative_to(conf).as_posix(), []).append(file.stem)
    groups = {group: sorted([*names, *components(group)]) for group, names in groups.items()}
    lines = [f"{name}: {', '.join(groups[name])}\n" for name in sorted(groups) if name.split("/")[0] != "hydra"]
    template = OmegaConf.load(conf / "hydra" / "default.yaml").help.template
    return string.Template(template).substitute(APP_CONFIG_GROUPS="".join(lines))
