"""Tutorials: how long they take with the package installed from its wheel."""

import json
from dataclasses import dataclass
from pathlib import Path

RECORD = "runs/benchmarks/avx2/tutorials.json"


@dataclass(frozen=True)
class Tutorial:
    """A page of docs/tutorials.

    Attributes:
        PAGE: Its path.
    """

    PAGE: str

    def blocks(self, root: Path) -> dict[str, str]:
        """The sentence about its time, by marker."""
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
        ended = record["results"]["seconds"][Path(self.PAGE).stem]
        machine = f"{record['hardware']['usable_cores']} cores of an {record['hardware']['cpu']}"
        times = ", ".join(f"*{title}* {seconds:.0f} s" for title, seconds in ended.items())
        return {
            "timing": f"Measured on {machine}, with the package installed from its wheel: the sections are finished "
            f"the following times after Python starts: {times} ([record](../../{RECORD}))."
        }


PAGES = tuple(Tutorial(f"docs/tutorials/{name}.md") for name in ("first_steps", "your_networks", "your_images"))
