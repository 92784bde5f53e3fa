"""Hydra's source of the options that installed packages declare as entry points (multicrop.config.entry_points).

Hydra imports this file in every application that it starts, so that imports of multicrop are inside functions, and the source is only on
the search path where multicrop's conf/ is.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SCHEME = "multicrop"


class EntryPointSource(ConfigSource):
    """Options of entry points as configuration files; a package is imported when one of its options is chosen."""

    @staticmethod
    def scheme() -> str:
        """The scheme of the path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The option, as its file would hold it."""
        from multicrop.config.entry_points import components

        group, name = _parts(config_path)
        component = components(group)[name]
        return ConfigResult(
            provider=component.package, path=self.full_path(), config=OmegaConf.create(component.content), header={"package": None}
        )

    def available(self) -> bool:
        """Whether the source can be read: always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether a package declares an option of this group."""
        return bool(_names(config_path.strip("/")))

    def is_config(self, config_path: str) -> bool:
        """Whether a package declares this option."""
        group, name = _parts(config_path)
        return name in _names(group)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The options of a group; the groups are those of conf/."""
        return [] if results_filter == ObjectType.GROUP else sorted(_names(config_path.strip("/")))


class EntryPointPath(SearchPathPlugin):
    """Appends the source to the search path of multicrop's own configuration."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source where conf/ is on the path and a package declares a component."""
        paths = [element.path.removeprefix("file://") for element in search_path.get_path()]
        folders = [Path(path) for path in paths if "://" not in path]
        if not any(folder.name == "conf" for folder in folders):
            return
        from multicrop.config.entry_points import component_packages
        from multicrop.config.job import CONF

        if component_packages() and any(folder.resolve() == CONF.resolve() for folder in folders):
            search_path.append(provider="multicrop", path=f"{SCHEME}://entry_points")


def _parts(config_path: str) -> tuple[str, str]:
    """The group and the name of an option."""
    group, _, name = config_path.strip("/").removesuffix(".yaml").rpartition("/")
    return group, name


def _names(group: str) -> set[str]:
    from multicrop.config.entry_points import components

    return set(components(group))
