"""The notebook of the documentation: its cells run, and its outputs are theirs."""

import json
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import docs_pages
import run_notebook

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_the_cells_of_the_notebook_print_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cell, printed in run_notebook.outputs(NOTEBOOK):
        if run_notebook.varies(cell):
            assert "record: " in printed and "record: " in run_notebook.stored(cell)
        else:
            assert printed == run_notebook.stored(cell)


def test_the_page_of_the_notebook_has_its_cells_and_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    page = docs_pages.notebook_page(NOTEBOOK)
    assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in cells) > 4
    assert all("".join(cell["source"]) in page for cell in cells)
    assert all(run_notebook.stored(cell).rstrip() in page for cell in run_notebook.code_cells({"cells": cells}))
    assert re.match("# In a notebook", page)


def test_an_error_of_a_cell_is_raised(tmp_path):
    path = tmp_path / "bad.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "metadata": {}, "outputs": [], "source": ["1 / 0"]}]}))
    with pytest.raises(ZeroDivisionError):
        run_notebook.outputs(path)
