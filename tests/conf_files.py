"""Hydra's composition with each file of a configuration read once per process, and without maps that no default reads: half its time.

Hydra has no public interface for either, so this file patches it; without the patch the tests are only slower.
"""

import pickle
from functools import cache

from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository

from multicrop.config import PACKAGE

CONF = (PACKAGE.parent.parent / "conf").as_uri()


@cache
def read_once() -> None:
    """Let Hydra keep the files of conf/, and of its own, that it has read."""
    load, files = ConfigRepository.load_config, {}

    def load_config(self: ConfigRepository, config_path: str):
        paths = tuple(source.full_path() for source in self.sources)
        if CONF not in paths:
            return load(self, config_path)
        if (paths, config_path) not in files:
            files[paths, config_path] = pickle.dumps(load(self, config_path))
        return pickle.loads(files[paths, config_path])  # noqa: S301 - a copy, which Hydra changes

    ConfigRepository.load_config = load_config
    make = defaults_list._create_interpolation_map

    def choices(overrides, defaults, self_added):
        """The choices made so far, where a default of the list is an interpolation of them."""
        return make(overrides, defaults, self_added) if any(default.is_interpolation() for default in defaults) else None

    defaults_list._create_interpolation_map = choices
