"""Run all notebooks of this folder, each in an empty folder; `make notebooks` calls it.

Nothing is written back: the notebooks are kept without outputs.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Run them one after the other; the first error ends the program."""
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        start = time.monotonic()
        with TemporaryDirectory() as folder:
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        print(f"{path.name}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
