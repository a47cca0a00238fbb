"""The notebook: it runs from top to bottom, and what it shows is what it gives."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "homer.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def shown(notebook):
    """What each cell shows: its text without the numbers, and the kinds of the rest."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            streams = [o for o in cell.outputs if o.output_type == "stream"]
            others = [o for o in cell.outputs if o.output_type != "stream"]
            text = "".join(output.text for output in streams)
            kinds = [sorted(output.data) for output in others]
            cells.append((re.sub(r"\d[\d.,]*(e-\d+)?", "#", text), kinds))
    return cells


def test_notebook_runs_and_shows_what_is_committed(committed):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert shown(notebook) == shown(committed)


def test_committed_outputs_are_whole(committed):
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        *("stream", "display_data", "execute_result"),
    }
    assert {o.name for o in outputs if o.output_type == "stream"} == {"stdout"}
    # All but the first, which imports, show something; one of them plays a film.
    assert all(cell.outputs for cell in code[1:])
    assert sum("text/html" in output.get("data", ()) for output in outputs) == 1


def test_notebook_is_small_and_of_no_machine():
    content = NOTEBOOK.read_text()
    assert len(content) < 4_000_000
    text = re.sub(r"[\w+/=\\]{60,}", "", content)  # without the pictures
    assert "code-1" in text and len(text) < 200_000
    assert not re.search(r"/(root|home|tmp|Users|usr|opt|work)/|site-packages", text)
