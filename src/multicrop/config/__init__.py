"""Configuration: properties of the Hydra job, checks of the command line and of the values of knobs, and types of knobs."""

from multicrop.config.command_line import SWEEPS, check_overrides, check_parts
from multicrop.config.experiments import option_values, register_experiments, weight_of
from multicrop.config.help_page import help_page
from multicrop.config.job import (
    BESIDE,
    CONF,
    EMBEDDED_MODEL,
    PACKAGE,
    ROOT,
    TASK_OF,
    choices,
    in_parallel,
    in_sweep,
    local_folder,
    on_disk,
    parts_of,
    register_resolvers,
    sweeper_takes_failures,
    threads_of_job,
    without,
)
from multicrop.config.knobs import check_values
from multicrop.config.machine import check_machine

__all__ = [
    "BESIDE",
    "CONF",
    "EMBEDDED_MODEL",
    "PACKAGE",
    "ROOT",
    "SWEEPS",
    "TASK_OF",
    "check_machine",
    "check_overrides",
    "check_parts",
    "check_values",
    "choices",
    "help_page",
    "in_parallel",
    "in_sweep",
    "local_folder",
    "on_disk",
    "option_values",
    "parts_of",
    "register_experiments",
    "register_resolvers",
    "sweeper_takes_failures",
    "threads_of_job",
    "weight_of",
    "without",
]
