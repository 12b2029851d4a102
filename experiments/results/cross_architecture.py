"""docs/results/zoos.md: networks sampled for an architecture that the autoencoder never saw."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/zoos.md"
RECORDS = Path("runs/cross")
TITLES = {
    "cnn_l_rowwise": "CNN-s to CNN-l, MNIST, rowwise tokens",
    "cnn_l_dense": "CNN-s to CNN-l, MNIST, dense tokens",
    "resnet32": "ResNet-20 to ResNet-32, digits",
}
METHODS = {
    "anchors": "prompts, continued",
    "reconstructed_anchors": "prompts, reconstructed",
    "sane_kde": "SANE, KDE",
    "sane_subsampled": "SANE, SUB",
    "sane_bootstrapped": "SANE, BOOT",
    "sane_prior": "SANE, from the prior",
    "anchor_noise": "prompt + noise, same distance",
    "anchor_noise_selected": "prompt + noise, selected",
    "anchor_average": "average of prompts",
    "scratch": "scratch",
}


def study_block(path: Path) -> str:
    """Accuracy of every method after 0, 1 and 5 epochs."""
    record = json.loads(path.read_text(encoding="utf-8"))
    results = record["results"]
    methods = results["methods"]
    epochs = [key for key in methods["scratch"] if key.startswith("epoch_")]
    rows = [
        [title, *(_cell(methods[name][epoch]) for epoch in epochs), f"{methods[name]['nearest_prompt_distance']:.2f}"]
        for name, title in METHODS.items()
    ]
    header = ["method", *(epoch.replace("_", " ") for epoch in epochs), "to nearest prompt"]
    draws = results["draws"][0]
    note = (
        f"Mean of {draws['num_kept']} networks ± standard deviation over {len(results['draws'])} seeds. "
        f"{draws['num_anchors']} prompts; {results['tokens']} tokens; {results['layers']} layers, of which "
        f"{results['layers_without_statistics']} take their statistics from the prompts; {draws['num_candidates']} "
        f"candidates. Record: [{path.name}](../../{RECORDS}/{path.name})."
    )
    return f"### {TITLES[path.stem]}\n\n{markdown_table(header, rows, numbers=True)}\n\n{note}"


def _cell(found: dict[str, Any]) -> str:
    spread = found["standard_deviation"]
    return f"{found['mean']:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    paths = [root / RECORDS / f"{name}.json" for name in TITLES]
    return {"cross": "\n\n".join(study_block(path) for path in paths if path.exists())}
