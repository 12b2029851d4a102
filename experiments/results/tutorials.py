"""Tutorials, and the page on first hours: how long the code takes with the package installed from its wheel."""

import json
from dataclasses import dataclass
from pathlib import Path

from hf_sane.cards._tables import markdown_table

RECORD = "runs/benchmarks/tutorials.json"
SAMPLED = "5. Sample new networks, and load them"
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


@dataclass(frozen=True)
class FirstResults:
    """The part on first results of the page on speed.

    Attributes:
        PAGE: Its path.
    """

    PAGE: str = "docs/results/performance.md"

    def blocks(self, root: Path) -> dict[str, str]:
        """Table of the first results in the tutorials."""
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
        rows = [
            [result, f"{record['results']['seconds'][page][section]:.0f}"] for result, page, section in FIRST_RESULTS
        ]
        machine = f"{record['hardware']['usable_cores']} cores of an {record['hardware']['cpu']}"
        text = (
            "Measured with the Python code of the tutorials, with the package installed from its wheel, from the "
            f"start of Python, on {machine} ([record](../../{RECORD}), which has every section)."
        )
        return {"times": f"{text}\n\n{markdown_table(['first result', 'seconds'], rows, numbers=True)}"}


FIRST_RESULTS = (
    ("researcher: a zoo of 12 digit networks", "first_steps", "1. Build a zoo"),
    ("researcher: an embedding", "first_steps", "3. Encode, embed and rebuild a network"),
    ("researcher: own checkpoints imported, new networks sampled", "your_networks", SAMPLED),
    ("practitioner: a classifier from 60 images", "your_images", "2. Start"),
)
TUTORIAL_NAMES = ("first_steps", "your_networks", "your_images", "published_zoos")
TUTORIALS = tuple(Tutorial(f"docs/tutorials/{name}.md") for name in TUTORIAL_NAMES)
PAGES = (*TUTORIALS, FirstResults())
