"""Keep the cards of the demo's artefacts, and of the zoos and models of docs/results.md, as records and facts tell them.

python experiments/update_cards.py --demo demo_output   # after `make demo`: take over its configurations, render the cards
python experiments/update_cards.py --zoos ../zoos       # after experiments/paper_zoos.py: the same for its zoos
python experiments/update_cards.py --models ../models   # after experiments/paper_models.py: the same for its autoencoders and networks
python experiments/update_cards.py                      # render again from what model_cards/ and the demo's record hold
python experiments/update_cards.py --check              # exit 1 if a card says something else than the record
"""

import argparse
import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_sane.demo.cards import CARD_FACTS, render_demo_cards
from hf_sane.zoo.cards import render_card
from hf_sane.zoo.facts import FILE_NAME, read_facts

models = importlib.import_module("paper_models")  # the script beside this one

ROOT = Path(__file__).parents[1]
PAPER_ZOOS, PAPER_MODELS = "paper_zoos", "paper_models"


def main(argv: Sequence[str] | None = None) -> int:
    """Render or compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder that `make demo` wrote")
    parser.add_argument("--zoos", type=Path, help="folder that experiments/paper_zoos.py wrote")
    parser.add_argument("--models", type=Path, help="folder that experiments/paper_models.py wrote")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(argv)
    cards = ROOT / "model_cards"
    if options.demo is not None:
        for artefact, names in CARD_FACTS.items():
            (cards / artefact).mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(options.demo / artefact / name, cards / artefact / name)
    if options.zoos is not None:
        (cards / PAPER_ZOOS).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.zoos / FILE_NAME, cards / PAPER_ZOOS / FILE_NAME)
    if options.models is not None:
        take_models(options.models, cards / PAPER_MODELS)
    report = json.loads((ROOT / "runs/demo/report.json").read_text(encoding="utf-8"))
    rendered = {cards / artefact / "README.md": text for artefact, text in render_demo_cards(cards, report).items()}
    rendered[cards / PAPER_ZOOS / "README.md"] = render_card(read_facts(cards / PAPER_ZOOS))
    for folder in (cards / PAPER_MODELS, ROOT / "pretrained"):
        rendered |= models.render_cards(folder)
    outdated = {
        page: text for page, text in rendered.items() if not page.exists() or page.read_text(encoding="utf-8") != text
    }
    for page, text in outdated.items():
        print(f"{'out of date' if options.check else 'wrote'}: {page.relative_to(ROOT)}")
        if not options.check:
            page.write_text(text, encoding="utf-8")
    return int(options.check and bool(outdated))


def take_models(source: Path, target: Path) -> None:
    """Copy what the cards of autoencoders and sampled networks are made of."""
    for kind, names in models.CARD_FACTS.items():
        for folder in sorted(source.glob(f"{kind}-*")):
            (target / folder.name).mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(folder / name, target / folder.name / name)


if __name__ == "__main__":
    raise SystemExit(main())
