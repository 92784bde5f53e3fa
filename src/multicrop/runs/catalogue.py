"""What conf/ offers, from its files and from the docstrings of what they name: `multicrop ls`, `multicrop show` and the site read it."""

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate

from multicrop.config import CONF, PACKAGE, ROOT
from multicrop.config.entry_points import Component, components
from multicrop.config.knobs import words_of
from multicrop.config.options import bases_of, groups_in, option_content, option_files

LABELS = ("Command", "Source", "Expected", "Time")  # of lines in the head of a file
SENTENCE = re.compile(r"(?<=[^A-Z])\.\s+(?=[A-Z0-9])")
KINDS = {f"{group}s": group for group in sorted(groups_in([CONF]) - {"hydra"})}


@dataclass(frozen=True)
class Knob:
    """One entry of a file: its default, what it may be, and the comment behind it."""

    name: str
    default: Any
    words: str
    comment: str


@dataclass(frozen=True)
class Option:
    """One file of a config group."""

    group: str
    name: str
    path: Path

    @cached_property
    def head(self) -> str:
        """The comment at the top of the file."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return "\n".join(line.removeprefix("#").strip() for line in lines[:end] if not line.startswith("# @package"))

    @property
    def place(self) -> str:
        """Where the option is: its file, below the repository where it lies there."""
        return str(self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path)

    @property
    def package(self) -> str:
        """The installed package that declares it; empty for a file."""
        return ""

    @property
    def about(self) -> str:
        """What the head says before its command, in one line."""
        return " ".join(self.head[: _start(self.head, LABELS)].split())

    @property
    def summary(self) -> str:
        """The first sentence of the head."""
        sentence = SENTENCE.split(self.about, maxsplit=1)[0]
        return sentence if sentence.endswith("...") else sentence.removesuffix(".")

    @cached_property
    def values(self) -> dict[str, Any]:
        """The entries of the file and of those of its group that it begins from."""
        return option_content(self.path)

    @property
    def target(self) -> str:
        """The dotted path of what the file configures; empty where there is none."""
        return self.values.get("_target_", "")

    @cached_property
    def docstring(self) -> str:
        """The docstring of the target."""
        return docstring_of(self.target) if self.target else ""

    @property
    def source(self) -> str:
        """Where it comes from: the paper that head or docstring names, where a data set is found, the hub id of a model."""
        if text := self._labelled("Source"):
            return text
        if self.group == "dataset":
            return self.values.get("source") or ("in the package" if ".embedded." in self.target else "")
        if self.group == "model":
            path = str(self.values.get("path") or self.values.get("name", "")).removeprefix("hf-hub:")
            return "in the package" if path.startswith("${package:") else path if "/" in path else ""
        found = re.search(r"Source:\s+(.*?)(?:\.\s|\.?$)", self.docstring, re.DOTALL)
        return " ".join(found[1].split()) if found else ""

    @property
    def cost(self) -> str:
        """What it costs, as far as its file says: views per image, passes of training, time of a sweep."""
        if self.group == "crop":
            return f"{(count := views_of(self.values))} view{'s' if count > 1 else ''} per image"
        if text := self._labelled("Time"):
            return text
        named = {"epochs": "epochs of training", "steps": "steps per image"}
        return ", ".join(f"{self.values[knob]} {words}" for knob, words in named.items() if isinstance(self.values.get(knob), int))

    @property
    def training(self) -> str:
        """What a model was trained on, in words; empty where its file states nothing."""
        stated = (self.values.get("facts") or {}).get("training_data")
        return f"trained on {', '.join(stated)}" if isinstance(stated, list) else f"training data {stated}" if stated else ""

    @property
    def knobs(self) -> list[Knob]:
        """The entries of the file that the command line can set, by their names there."""
        words = words_of(self.target, self.values.keys())
        shown = {name: value for name, value in self.values.items() if not name.startswith("_") and name != "source"}
        comments = self._comments()
        return [Knob(f"{self.group}.{name}", value, words.get(name, ""), comments.get(name, "")) for name, value in shown.items()]

    def _labelled(self, label: str) -> str:
        """What the head says behind a label, in one line."""
        _, mark, text = f"\n{self.head}".partition(f"\n{label}:")
        return " ".join(text[: _start(text, LABELS)].split()).rstrip(".") if mark else ""

    def _comments(self) -> dict[str, str]:
        """The comment behind each entry, also of the options of its group that the file begins from."""
        found: dict[str, str] = {}
        for base in bases_of(self.path):
            found |= Option(self.group, base.stem, base)._comments()
        text = self.path.read_text(encoding="utf-8")
        return found | dict(re.findall(r"^(\w+):[^#\n]*# (.*)$", text, re.MULTILINE))


@dataclass(frozen=True)
class Declared(Option):
    """An option that an installed package declares as an entry point; its head is the first paragraph of the docstring."""

    component: Component

    @property
    def place(self) -> str:
        """The package and the entry point."""
        return f"{self.package}, {self.component.entry.value}"

    @property
    def package(self) -> str:
        """The installed package that declares it."""
        return self.component.package

    @cached_property
    def head(self) -> str:
        """The first paragraph of the docstring."""
        return self.docstring.split("\n\n", 1)[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The target, its knobs and facts."""
        return self.component.content

    def _comments(self) -> dict[str, str]:
        return {}


def options_of(group: str, own: Path | None = None) -> list[Option]:
    """The options of a config group, with those of installed packages and of a configuration folder of the user's own, sorted by name."""
    files = [Option(group, name, path) for name, path in option_files(group, [CONF, *([own] if own else [])]).items()]
    declared = [Declared(group, name, CONF, component) for name, component in components(group).items()]
    return sorted([*files, *declared], key=lambda option: option.name)


def found(name: str, own: Path | None = None) -> list[Option]:
    """The options of a name, which several groups may have, or of ``GROUP=NAME``.

    Args:
        name: The name.
        own: A configuration folder of the user's own.

    Raises:
        ValueError: If there is none.
    """
    group, _, option = name.rpartition("=")
    groups = [group] if group else list(KINDS.values())
    named = [one for each in groups for one in options_of(each, own) if one.name == option]
    if not named:
        raise ValueError(f"{name} is no option of {' or '.join(groups)}. List them with multicrop ls: {', '.join(KINDS)}")
    return named


def views_of(values: dict[str, Any]) -> int:
    """Views per image of a crop policy, the global view among them."""
    if isinstance(values.get("n_crops"), int):
        return values["n_crops"] + 1
    from multicrop.crops import as_policy, boxes_of  # torch, which no other option needs

    return len(boxes_of(as_policy(instantiate(values)), 224, 224, "", 0))


def docstring_of(target: str) -> str:
    """The docstring of a function or class; that of this package is read without an import."""
    module, _, name = target.rpartition(".")
    if module.partition(".")[0] != PACKAGE.name:
        return inspect.getdoc(get_object(target)) or ""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return next(
        (ast.get_docstring(node) or "" for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name), ""
    )


def _start(text: str, labels: tuple[str, ...]) -> int:
    """Where the first labelled line of a text begins; its length where there is none."""
    return min((found.start() for label in labels if (found := re.search(rf"^{label}:", text, re.MULTILINE))), default=len(text))
