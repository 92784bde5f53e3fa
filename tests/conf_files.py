"""Hydra's composition in a third of its time: files and interpolations are read once per process, copies are pickled.

Hydra and OmegaConf have no public interface for this, so this file patches them; without the patch the tests are only slower.
"""

import copy
import pickle
from functools import cache

import omegaconf.base
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from omegaconf import OmegaConf, flag_override

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

    def embed(result, package: str | None):
        """The configuration below its package, copied as load_config does: OmegaConf's own copy takes several times as long."""
        package = package if package is not None else result.header["package"]
        if package:
            inner, result = pickle.loads(pickle.dumps(result.config)), copy.copy(result)  # noqa: S301
            result.config = OmegaConf.create()
            with flag_override(result.config, "no_deepcopy_set_nodes", True):
                OmegaConf.update(result.config, package, inner, merge=False)
        return result

    ConfigLoaderImpl._embed_result_config = staticmethod(embed)
    omegaconf.base.parse = cache(omegaconf.base.parse)
