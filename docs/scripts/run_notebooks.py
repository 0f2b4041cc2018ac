"""Run the notebooks of examples/ and save their outputs. The test of the notebooks runs them with the same function.

python docs/scripts/run_notebooks.py [NAME ...]
"""

import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 900  # of a cell; a busy machine takes many times as long as an idle one
ENVIRONMENT = {
    "COLUMNS": "100",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(names: list[str]) -> None:
    """Run notebooks, all without a name, and write their outputs into their files."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            began, computed = time.perf_counter(), _processor_seconds()
            with tempfile.TemporaryDirectory() as folder:
                notebook = tidy(run_notebook(path, Path(folder)), folder)
            nbformat.write(notebook, path)
            took = f"{time.perf_counter() - began:.0f} s, {_processor_seconds() - computed:.0f} of the processor"
            print(f"{path.name}: {took}, {path.stat().st_size / 1000:.0f} kB")


def run_notebook(path: Path, folder: Path) -> NotebookNode:
    """Run all cells in this folder, one thread and no network. Raises `CellExecutionError` with the cell that failed."""
    notebook = nbformat.read(path, as_version=4)
    commands = Path(sys.executable).parent  # where `!mmblocks` is this environment's
    own = {"HF_HOME": str(folder / ".hub"), "IPYTHONDIR": str(folder / ".ipython")}  # nothing of this user's is read
    changed = {**ENVIRONMENT, **own, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    kernel = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=kernel, coalesce_streams=True)
    client.execute(env={**os.environ, **changed})
    return notebook


def tidy(notebook: NotebookNode, folder: str) -> NotebookNode:
    """Remove what differs between runs and machines: times, progress bars, paths."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_tidy_output(one, folder) for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def _tidy_output(output: NotebookNode, folder: str) -> NotebookNode:
    if "text" in output:
        output.text = _without_paths(output.text, folder)
    if "image/png" in output.get("data", {}):
        output.data.pop("image/jpeg", None)  # the same image again
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = _without_paths(value, folder)
    if "metadata" in output:
        output.metadata = {}
    return output


def _without_paths(text: str, folder: str) -> str:
    """Text with paths relative to the folder of the run; paths of the package begin with mmblocks."""
    text = text.replace(f"{folder}/", "")
    return re.sub(r"/[^\s'\"]*/mmblocks/", "mmblocks/", text)


def _processor_seconds() -> float:
    """Processor time of the processes that have ended: kernels and the commands that they ran."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
