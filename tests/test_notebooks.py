"""The example notebooks run from the first cell to the last, and are committed small."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import TIME_LIMIT

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} >= {"gaussian_vae", "gumbel_softmax_vae"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_small(notebook: Path) -> None:
    assert notebook.stat().st_size < 300_000, "clear its outputs"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Jupyter's own
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra `docs` brings it")
    nbclient = pytest.importorskip("nbclient", reason="the extra `docs` brings it")
    pytest.importorskip("ipykernel", reason="the extra `docs` brings it")
    content = nbformat.read(notebook, as_version=4)
    client = nbclient.NotebookClient(
        content, timeout=TIME_LIMIT, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    pictures = [
        output for cell in content.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 3
