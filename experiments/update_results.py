"""Write the results of run records into README.md and docs/results, so that no number is typed by hand.

python experiments/update_results.py            # after `make demo` and the benchmarks; seconds
python experiments/update_results.py --check    # exit 1 if a page differs from its record

Each page has one or several modules in experiments/results.
"""

import re
import textwrap
from pathlib import Path

from results import (
    ablations,
    analysis,
    beyond_vision,
    children,
    costs,
    cross_architecture,
    few_shot,
    implicit,
    large_collections,
    large_models,
    lineage,
    lora,
    merging,
    network_latents,
    paper,
    performance,
    probes,
    probing,
    rates,
    readme,
    regions,
    repair,
    scanning,
    starting,
    symmetries,
    tutorials,
    versions,
)
from script_options import ScriptParser

from hf_sane.records._failures import run_script
from hf_sane.records._files import write_atomically

ROOT = Path(__file__).parents[1]
LINE_LENGTH = 119
PAGES = (
    readme,
    performance,
    costs,
    versions,
    analysis,
    symmetries,
    large_collections,
    large_models,
    lora,
    merging,
    probes,
    probing,
    rates,
    children,
    network_latents,
    implicit,
    repair,
    regions,
    beyond_vision,
    paper,
    cross_architecture,
    ablations,
    scanning,
    starting,
    few_shot,
    lineage,
    *tutorials.PAGES,
)


def wrapped(block: str) -> str:
    """Wrap the paragraphs of `block`, but not its tables, headings and pictures."""
    lines = []
    for line in block.split("\n"):
        long = len(line) > LINE_LENGTH and not line.startswith(("|", "#", "!"))
        lines += textwrap.wrap(line, LINE_LENGTH, break_long_words=False, break_on_hyphens=False) if long else [line]
    return "\n".join(lines)


def replaced(text: str, page: str, name: str, block: str) -> str:
    """Replace the text between the markers `name` of a page with `block`."""
    pattern = re.compile(rf"(<!-- {name}:start -->).*?(<!-- {name}:end -->)", flags=re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} lacks the markers <!-- {name}:start --> and <!-- {name}:end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


def pages() -> dict[Path, str]:
    """All pages with results, rendered from the records."""
    texts: dict[Path, str] = {}
    for module in PAGES:
        text = texts.get(ROOT / module.PAGE) or (ROOT / module.PAGE).read_text(encoding="utf-8")
        for name, block in module.blocks(ROOT).items():
            text = replaced(text, module.PAGE, name, wrapped(block))
        texts[ROOT / module.PAGE] = text
    return texts


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or only compare them with `--check`."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit with 1 if a page is out of date")
    arguments = parser.parse_args(argv)
    outdated = {page: text for page, text in pages().items() if page.read_text(encoding="utf-8") != text}
    for page, text in outdated.items():
        print(f"{'out of date' if arguments.check else 'written'}: {page.relative_to(ROOT)}")
        if not arguments.check:
            with write_atomically(page) as partial:
                partial.write_text(text, encoding="utf-8")
    return int(arguments.check and bool(outdated))


if __name__ == "__main__":
    run_script(main, name="update_results.py")
