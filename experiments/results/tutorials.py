"""Tutorials: how long they take with the package installed from its wheel."""

import json
from dataclasses import dataclass
from pathlib import Path

RECORD = "runs/benchmarks/avx2/tutorials.json"
MODULES = "runs/benchmarks/avx2/zoo_training_modules.json"


@dataclass(frozen=True)
class Tutorial:
    """A page of docs/tutorials.

    Attributes:
        PAGE: Its path.
    """

    PAGE: str

    def blocks(self, root: Path) -> dict[str, str]:
        """Sentences about its time and, on the page about modules, how fast they are trained, by marker."""
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
        ended = record["results"]["seconds"][Path(self.PAGE).stem]
        machine = f"{record['hardware']['usable_cores']} cores of an {record['hardware']['cpu']}"
        times = ", ".join(f"*{title}* {seconds:.0f} s" for title, seconds in ended.items())
        blocks = {
            "timing": f"Measured on {machine}, with the package installed from its wheel: the sections are finished "
            f"the following times after Python starts: {times} ([record](../../{RECORD}))."
        }
        return blocks if Path(self.PAGE).stem != "your_networks" else {**blocks, "speed": _speed(root)}


def _speed(root: Path) -> str:
    """How fast the library trains a user's module."""
    ratios = json.loads((root / MODULES).read_text(encoding="utf-8"))["results"]["ratios"]
    return (
        "Measured on one core, for a module with the layers of the library's CNN-s: "
        f"{ratios['own_stacked_over_own_plain']:.2f} times the rate of training one network after the other, and "
        f"{ratios['own_stacked_over_stacked']:.2f} times that of the built-in CNN-s ([record](../../{MODULES}))."
    )


PAGES = tuple(Tutorial(f"docs/tutorials/{name}.md") for name in ("first_steps", "your_networks", "your_images"))
