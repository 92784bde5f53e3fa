"""Runs the code cells of a notebook in this process, and stores what they print: `python tools/run_notebook.py docs/notebook.ipynb`."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

VARIES = "varies"  # tag of a cell whose output has times or paths


def outputs(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Each code cell with what it prints; an error of a cell is raised."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(code_cells(json.loads(path.read_text(encoding="utf-8"))), 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), names)  # noqa: S102 the project's own notebook
        found.append((cell, printed.getvalue()))
    return found


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def stored(cell: dict[str, Any]) -> str:
    """The output that the notebook holds for a cell."""
    return "".join(text for output in cell["outputs"] for text in output["text"])


def varies(cell: dict[str, Any]) -> bool:
    """Whether the output of a cell is not the same each time."""
    return VARIES in cell["metadata"].get("tags", [])


def store(path: Path) -> None:
    """Run a notebook and write it with its outputs."""
    notebook, run = json.loads(path.read_text(encoding="utf-8")), outputs(path)
    for number, (cell, (_, text)) in enumerate(zip(code_cells(notebook), run, strict=True), 1):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell |= {"execution_count": number, "outputs": [stream] if text else []}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    store(Path(sys.argv[1]))
