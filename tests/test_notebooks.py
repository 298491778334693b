"""The notebooks run from top to bottom in an empty folder, and lie in the repository without outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
KERNEL = "python3"


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"tour", "sweep"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_lies_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = [
        name for name in ("nbclient", "nbformat", "ipykernel", "pandas") if importlib.util.find_spec(name) is None
    ]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed: pip install 'frugal-ml[dev]'")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("FRUGAL_LOG_DIR")  # as a reader has it: logs/ beside the notebook
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=120, kernel_name=KERNEL, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )
    for said in SAID[path.stem]:
        assert said in printed
    assert list((tmp_path / "logs").glob("*/*/record.json"))


# A shell command in a cell does not fail it: what it must have printed is looked for.
SAID = {
    "tour": ["did you mean lenet5?", "momentum against plain SGD: +"],
    "sweep": ["12 runs in 4 groups: 12 completed", "on the test set, mean of 3 seeds"],
}
