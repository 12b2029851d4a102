"""README.md: what the demo measured."""

import json
from pathlib import Path

from hf_sane.workflows.demo.report import readme_block

PAGE = "README.md"


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"demo": readme_block(json.loads((root / "runs/demo/report.json").read_text(encoding="utf-8")))}
