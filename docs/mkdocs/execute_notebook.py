"""Executes docs/notebook.ipynb and writes it with its output; docs/notebook.ipynb itself stores the output.

python docs/mkdocs/execute_notebook.py FILE
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1]
SECONDS = 600  # at most per cell


def main(output: str) -> None:
    """Executes the notebook in docs/ and writes it to the file."""
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, resources={"metadata": {"path": DOCS}}
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}  # not the version that executed it
    nbformat.write(notebook, output)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"expected one argument: {__doc__.splitlines()[-1]}")
    main(sys.argv[1])
