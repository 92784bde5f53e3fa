"""The site: all pages are in its menu, every link leads somewhere, its examples are commands that exist, and it builds clean."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CONF, ROOT
from test_command_line import COMMANDS

from multicrop.config import check_overrides
from multicrop.runs.catalogue import KINDS, options_of

sys.path.insert(0, str(ROOT / "tools"))
import docs_pages as site

SOURCES = [*site.PAGES, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def text_of(source):
    return (ROOT / source).read_text()


def test_the_menu_has_every_page_once():
    listed = re.findall(r"^ +- .*: (\S+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)
    reference = [f"reference/{kind}.md" for kind in site.CATALOGUE]
    assert sorted(listed) == sorted([*map(site.site_place, SOURCES), *site.NOTEBOOKS.values(), *reference])


@pytest.mark.parametrize("source", SOURCES)
def test_every_link_leads_to_a_file_and_a_heading(source):
    for prose, part in site._parts(text_of(source)):
        for link in site.LINK.finditer(part) if prose else ():
            path, anchor = site._resolved(link[3], source)
            path, anchor = (source, link[3]) if link[3].startswith("#") else (path, anchor)
            if path is not None:
                assert (ROOT / path).exists(), link[0]
            if path is not None and anchor:
                titles = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
                assert anchor[1:] in {site.github_anchor(title, "-") for title in titles}, link[0]


class TestLinks:
    def test_to_a_page_and_to_a_figure(self):
        assert site.relinked("[a](docs/data.md#clusters) ![b](docs/explain.png)", "README.md") == "[a](data.md#clusters) ![b](explain.png)"
        assert site.relinked("[a](../README.md)", "docs/data.md") == "[a](index.md)"
        assert site.relinked("[a](../tta)", "experiments/few_shot/README.md") == "[a](tta.md)"
        assert site.relinked("![a](cost.png)", "experiments/zero_shot/README.md") == "![a](zero_shot/cost.png)"

    def test_to_code(self):
        said = "[policy](src/multicrop/data/images.py)"
        assert site.relinked(said, "README.md") == "policy (`src/multicrop/data/images.py`)"
        assert site.relinked(said, "README.md", "https://x.y/z/") == "[policy](https://x.y/z/blob/main/src/multicrop/data/images.py)"

    def test_code_and_addresses_stay(self):
        for said in ("```python\n[a](docs/data.md)\n```", "[a](https://x.y)", "[a](#b)"):
            assert site.relinked(said, "README.md") == said

    def test_a_csv_whose_link_is_a_line_of_its_own_is_shown_as_a_table(self):
        said = site.with_tables("A [a](storm.csv).\n\n[storm.csv](storm.csv)\n", "docs/reliability.md")
        rows = (ROOT / "docs" / "storm.csv").read_text().splitlines()
        assert said.startswith("A [a](storm.csv).\n\n[storm.csv](storm.csv)\n\n| fault | file\\_or\\_run | tried |")
        assert said.count("\n| ") == len(rows) + 1 and "| kill | bank | 113 | 113 | 0 | 0 |\n" in said

    def test_the_site_has_what_its_pages_show(self):
        assert "experiments/zero_shot/cost.png" in site.linked_files() and all((ROOT / path).is_file() for path in site.linked_files())


@pytest.mark.parametrize("kind", ["crops", "aggregators", "datasets"])
def test_a_page_of_options_has_a_section_each_and_a_docstring_per_function(kind):
    page, options = site.catalogue_page(kind, "title"), options_of(KINDS[kind])
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [option.name for option in options]
    assert page.count("```text") == len({option.target for option in options if option.docstring})
    assert "<wnid>" not in page and ("&lt;wnid&gt;" in page) == (kind == "datasets")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {5}


def test_the_python_page_names_what_exists():
    named = re.findall(r"^::: (.*)$", text_of("docs/api.md"), re.MULTILINE)
    assert len(named) > 5
    for name in named:
        module, _, part = name.rpartition(".")
        assert getattr(importlib.import_module(module), part).__doc__


def test_the_commands_of_the_start_page_exist():
    blocks = re.findall(r"^```bash\n(.*?)^```$", text_of("docs/start.md"), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    ours = [words[1:] for words in commands if words[0] == "multicrop"]
    assert len(ours) > 10 and {words[0] for words in ours} <= set(COMMANDS)
    for name, *words in ours:
        if name in ("run", "mock-run") and words != ["--help"] and "--config-dir" not in words:
            check_overrides(words, CONF)
        if name == "ls":
            assert words[0] in KINDS


def test_it_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'multicrop[docs]'")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "reference" / "crops" / "index.html").is_file()
