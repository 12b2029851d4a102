"""Write the results of run records into README.md and docs/performance.md: no figure there is typed by hand.

python scripts/update_results.py            # after `make demo` and the benchmarks; seconds
python scripts/update_results.py --check    # exit 1 if a page differs from its record
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from hf_sane.demo.report import markdown_table, readme_block

ROOT = Path(__file__).parents[1]


def performance_rows(folder: Path) -> list[list[str]]:
    """One row per claim that a benchmark record backs: work, wanted, measured, record."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for claim in record["results"].get("claims", []):
            reached = "" if claim["reached"] else " **(not reached)**"
            rows.append(
                [
                    claim["work"],
                    claim["wanted"],
                    claim["measured"] + reached,
                    f"[{path.name}](../{path.relative_to(ROOT)})",
                ]
            )
    return rows


def performance_block(folder: Path) -> str:
    """The table of docs/performance.md."""
    return markdown_table(["work", "wanted", "measured", "record"], performance_rows(folder))


def replaced(page: Path, name: str, block: str) -> str:
    """The text of `page` with what stands between its `name` markers replaced."""
    pattern = re.compile(rf"(<!-- {name}:start -->).*?(<!-- {name}:end -->)", flags=re.DOTALL)
    text = page.read_text(encoding="utf-8")
    if not pattern.search(text):
        raise ValueError(f"{page} lacks the markers <!-- {name}:start --> and <!-- {name}:end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


def pages() -> dict[Path, str]:
    """Every page with results, as its records want it."""
    demo: dict[str, Any] = json.loads((ROOT / "runs/demo/report.json").read_text(encoding="utf-8"))
    performance = ROOT / "docs" / "performance.md"
    return {
        ROOT / "README.md": replaced(ROOT / "README.md", "demo", readme_block(demo)),
        performance: replaced(performance, "benchmarks", performance_block(ROOT / "runs" / "benchmarks")),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with `--check` only compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    arguments = parser.parse_args(argv)
    outdated = {page: text for page, text in pages().items() if page.read_text(encoding="utf-8") != text}
    for page, text in outdated.items():
        print(f"{'out of date' if arguments.check else 'written'}: {page.relative_to(ROOT)}")
        if not arguments.check:
            page.write_text(text, encoding="utf-8")
    return int(arguments.check and bool(outdated))


if __name__ == "__main__":
    raise SystemExit(main())
