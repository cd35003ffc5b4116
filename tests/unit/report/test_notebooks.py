"""The analysis notebooks: executed for real, in one kernel, and kept without outputs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ekd_nemo.report.figures import FIGURES

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

from jupyter_client.manager import KernelManager  # noqa: E402

FOLDER = Path(__file__).parents[3] / "tools" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = {
    "cumulative_energy", "e_run", "eff_overall", "general_table", "om_perf", "power_over_time",
    "utilisation_temperature_memory",
}  # fmt: skip


def test_there_are_seven() -> None:
    assert {path.stem for path in NOTEBOOKS} == NAMES


@pytest.fixture(scope="module")
def kernel(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One kernel for all: starting one and importing matplotlib costs seconds."""
    home = tmp_path_factory.mktemp("home")
    root = str(FOLDER.parents[1])
    private = {
        "EKD_RUNS": simulated,
        "IPYTHONDIR": home / "ipython",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "PYTHONPATH": os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in private.items():
            patch.setenv(name, str(value))
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel()
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_something_in_every_cell(path: Path, kernel: KernelManager) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, km=kernel, timeout=120).execute(cleanup_kc=False)
    _, *shown = [cell for cell in book.cells if cell.cell_type == "code"]
    assert shown
    for cell in shown:
        data = cell.outputs[-1]["data"]
        html = data.get("text/html", data["text/plain"])
        drawn = re.search(r'figure\(content, "(\w+)"\)', cell.source)
        if drawn is None:
            assert "<td" in html or "few_repeats" in html, cell.source
        else:
            assert drawn[1] in FIGURES
            assert "<svg" in html, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_kept(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert set(book.metadata) == {"kernelspec", "language_info"}
