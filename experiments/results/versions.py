"""docs/results/versions.md: versions of Python and of the dependencies that were tried."""

import json
from pathlib import Path

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/versions.md"
TITLES = {"lowest": "lowest", "newest": "newest"}


def matrix_block(path: Path) -> str:
    """A table of results, and one of versions."""
    entries = json.loads(path.read_text(encoding="utf-8"))["results"]
    names = {name: TITLES.get(name, f"Python {name}") for name in entries}
    tests = [
        [names[name], entry["python"], f"{entry['passed']:,}", ", ".join(entry["failed"]) or "none"]
        for name, entry in entries.items()
    ]
    packages = list(dict.fromkeys(package for entry in entries.values() for package in entry["packages"]))
    rows = [[package, *(entry["packages"].get(package, "") for entry in entries.values())] for package in packages]
    return (
        f"{markdown_table(['environment', 'Python', 'tests passed', 'failed'], tests)}\n\n"
        f"{markdown_table(['package', *names.values()], rows)}"
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's block by marker."""
    return {"matrix": matrix_block(root / "runs" / "matrix" / "record.json")}
