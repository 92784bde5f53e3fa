"""A hook of mkdocs: the README and the studies as pages, pages of all options made from conf/ and docstrings, and links between them."""

import csv
import json
import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {
    f"experiments/{path.parent.name}/README.md": f"studies/{path.parent.name}.md" for path in sorted(ROOT.glob("experiments/*/README.md"))
}
NOTEBOOKS = {"docs/notebook.ipynb": "notebook.md"}
ASSETS = (".png", ".csv", ".html")  # beside the studies
CATALOGUE = {
    "crops": "Crop policies",
    "aggregators": "Aggregators",
    "adapters": "Few-shot adapters",
    "methods": "Test-time methods",
    "prompts": "Prompts",
    "models": "Models",
    "datasets": "Data sets",
    "sweeps": "Sweeps",
    "protocols": "Protocols",
}
TABLE = re.compile(r"^\[[^\]]+\]\(([^)\s]+\.csv)\)$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> None:
    """Name anchors as GitHub does, so that links to sections hold in both places."""
    config["mdx_configs"].setdefault("toc", {})["slugify"] = github_anchor


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/, and the figures and tables that pages link to."""
    from mkdocs.structure.files import File

    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for source, place in NOTEBOOKS.items():
        files.remove(files.get_file_from_path(source.removeprefix("docs/")))
        files.append(File.generated(config, place, content=notebook_page(ROOT / source)))
    for kind, title in CATALOGUE.items():
        files.append(File.generated(config, f"reference/{kind}.md", content=catalogue_page(kind, title)))
    for path in linked_files():
        if files.get_file_from_path(place := site_place(path) or "") is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository into links within the site."""
    source = source_of(page.file.src_uri)
    return markdown if source is None else relinked(with_tables(markdown, source), source, config.get("repo_url"))


def with_tables(markdown: str, source: str) -> str:
    """A page with the table of each CSV file below the line that is a link to it alone."""

    def shown(link: re.Match) -> str:
        path, _ = _resolved(link[1], source)
        with (ROOT / str(path)).open(newline="", encoding="utf-8") as stream:
            head, *rows = csv.reader(stream)
        return "\n".join([link[0], "", *(f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *rows))])

    return TABLE.sub(shown, markdown)


def github_anchor(title: str, separator: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", separator)


def source_of(place: str) -> str | None:
    """The file of the repository behind a page; None for a page that is made from conf/."""
    return next((source for source, page in PAGES.items() if page == place), f"docs/{place}" if (ROOT / "docs" / place).is_file() else None)


def site_place(path: str) -> str | None:
    """Where a file of the repository is in the site; None where it is not."""
    if path in PAGES or f"{path}/README.md" in PAGES:
        return PAGES.get(path) or PAGES[f"{path}/README.md"]
    if not (ROOT / path).is_file():
        return None
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path.replace("experiments/", "studies/", 1) if path.startswith("experiments/") and path.endswith(ASSETS) else None


def relinked(markdown: str, source: str, repository: str | None = None) -> str:
    """A page with its links as the site has them; a file that is not in the site becomes a link to the repository, or its path.

    Args:
        markdown: The page.
        source: Its file in the repository.
        repository: Address of the repository.
    """

    def changed(link: re.Match) -> str:
        picture, text, target = link.groups()
        path, anchor = _resolved(target, source)
        if path is None:
            return link[0]
        if place := site_place(path):
            here = posixpath.dirname(site_place(source) or "")
            return f"{picture}[{text}]({posixpath.relpath(place, here or '.')}{anchor})"
        return f"[{text}]({repository.rstrip('/')}/blob/main/{path})" if repository else f"{text} (`{path}`)"

    return "".join(LINK.sub(changed, part) if prose else part for prose, part in _parts(markdown))


def linked_files() -> list[str]:
    """The files of the repository that pages link to and that are no pages."""
    sources = [*PAGES, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    found: dict[str, None] = {}
    for source in sources:
        for prose, part in _parts((ROOT / source).read_text(encoding="utf-8")):
            targets = [_resolved(link[3], source)[0] for link in LINK.finditer(part)] if prose else []
            found |= dict.fromkeys(path for path in targets if path and (place := site_place(path)) and not place.endswith(".md"))
    return list(found)


def notebook_page(path: Path) -> str:
    """A notebook as a page: its texts, its code, and what the code printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        if printed := "".join(text for output in cell.get("outputs", []) for text in output["text"]).rstrip():
            parts.append(f"```text\n{printed}\n```")
    return "\n\n".join([*parts, ""])


def _resolved(target: str, source: str) -> tuple[str | None, str]:
    """The path in the repository that a link names, and its anchor; no path for an address or an anchor alone."""
    path, mark, anchor = target.partition("#")
    if not path or ":" in path:
        return None, ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), mark + anchor


def _parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """The parts of a page, and whether each is prose and not a block of code."""
    for number, part in enumerate(re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)):
        yield number % 2 == 0, part


def catalogue_page(kind: str, title: str) -> str:
    """The page of a config group: a table of its options, then each with its head, knobs and docstring."""
    from multicrop.runs.catalogue import KINDS, options_of

    options = options_of(KINDS[kind])
    lines = [
        f"# {title}",
        "",
        f"From the files of `conf/{KINDS[kind]}/` and the docstrings of what they name; `multicrop ls {kind}` prints the same.",
        "",
    ]
    lines += ["| option | what it is | source | cost |", "|---|---|---|---|"]
    for option in options:
        anchor = github_anchor(option.name, "-")
        lines.append(f"| [`{option.name}`](#{anchor}) | {_cell(option.summary)} | {_cell(option.source)} | {_cell(option.cost)} |")
    shown: dict[str, str] = {}
    for option in options:
        lines += ["", f"## {option.name}", "", _prose(option.head)]
        lines += ["", f"Code: `{option.target}`", ""] if option.target else []
        if option.knobs and option.target:
            lines += ["| knob | default | may be | |", "|---|---|---|---|"]
            lines += [
                f"| `{knob.name}` | {_code(_shown(knob.default))} | {_cell(knob.words)} | {_cell(knob.comment)} |" for knob in option.knobs
            ]
        if option.docstring and (first := shown.setdefault(option.target, option.name)) == option.name:
            lines += ["", "```text", option.docstring, "```"]
        elif option.docstring:
            lines += ["", f"The code is that of [`{first}`](#{github_anchor(first, '-')})."]
    return "\n".join([*lines, ""])


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()


def _code(text: str) -> str:
    """Inline code of a table."""
    return f"`{text}`".replace("|", "\\|")


def _prose(text: str) -> str:
    """Text whose marks are shown as they are; labelled lines are paragraphs."""
    return re.sub(r"\n(?=(?:Source|Command|Expected|Time):)", "\n\n", _plain(text))


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text without marks of Markdown and HTML."""
    return re.sub(r"([*_`\[\]])", r"\\\1", escape(text, quote=False))
