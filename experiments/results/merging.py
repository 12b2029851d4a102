"""docs/results/averaging.md: the gain of SWA; soups, sampling and ensembles compared."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/averaging.md"
WAYS = {
    "one_cycle": "one-cycle training of the same length",
    "swa_constant": "SWA, constant rate",
    "swa_constant_last": "last weights of the same run, constant rate",
    "swa_cyclical": "SWA, cyclical rate",
    "swa_cyclical_last": "last weights of the same run, cyclical rate",
}
GAINS = {
    "swa_constant_over_last_weights": "constant rate, over the last weights",
    "swa_constant_over_one_cycle": "constant rate, over one-cycle training",
    "swa_cyclical_over_last_weights": "cyclical rate, over the last weights",
    "swa_cyclical_over_one_cycle": "cyclical rate, over one-cycle training",
}
METHODS = {
    "mean_ingredient": "ingredients, mean",
    "best_ingredient": "best ingredient",
    "uniform_soup_unaligned": "uniform soup, not aligned",
    "uniform_soup": "uniform soup, aligned",
    "greedy_soup": "greedy soup, aligned",
    "sane_sampled": "SANE, best sample",
    "sane_mean_latent": "SANE, mean latent",
    "ingredient_plus_noise": "ingredient + noise at the same distance, best sample",
    "ensemble": "ensemble (runs all ingredients)",
}


def _spread(values: dict[str, Any], *, signed: bool = False) -> str:
    return f"{values['mean']:{'+' if signed else ''}.3f} ± {values['std']:.3f}"


def swa_gain_block(folder: Path) -> str:
    """Accuracy of every method, and gains, for each architecture."""
    record = json.loads((folder / "swa_gain.json").read_text(encoding="utf-8"))
    settings, data = record["arguments"], record["data"]
    parts = []
    for name, found in record["results"].items():
        ways = []
        for way, title in WAYS.items():
            row = found["ways"][way]
            ways.append([title, _spread(row["test_accuracy"]), _spread(row["test_loss"]), f"{row['learning_rate']:g}"])
        gains = [[title, _spread(found["accuracy_gain"][gain], signed=True)] for gain, title in GAINS.items()]
        parts += [
            f"**{name}**, {settings['seeds']} seeds, {data['images']} ({data['train']:,} training images): "
            f"{settings['epochs']} epochs, then {settings['cycles']} times {settings['cycle_epochs']}; mean ± "
            "standard deviation over seeds.",
            markdown_table(["", "test accuracy", "test loss", "learning rate"], ways, numbers=True),
            markdown_table(["gain in test accuracy", "mean of paired differences"], gains, numbers=True),
        ]
    return "\n\n".join([*parts, "Record: [swa_gain.json](../../runs/merging/swa_gain.json)."])


def soup_block(folder: Path) -> str:
    """Test accuracy of all combinations of two, five and ten ingredients."""
    record = json.loads((folder / "soup_vs_sampling.json").read_text(encoding="utf-8"))
    results, settings = record["results"], record["arguments"]
    columns = [
        (population, f"{count}_ingredients", f"{title}, {count}")
        for population, title in (("independent", "independent"), ("fine_tuned", "fine-tuned"))
        for count in settings["ingredients"]
    ]
    rows = []
    for method, title in METHODS.items():
        cells = []
        for population, key, _ in columns:
            mean, spread = results[population][key][method], results[f"{population}_std"][key][method]
            cells.append(f"{mean:.3f} ± {spread:.3f}")
        rows.append([title, *cells])
    table = markdown_table(["test accuracy", *(title for *_, title in columns)], rows, numbers=True)
    return (
        f"{table}\n\nMean ± standard deviation over {settings['draws']} draws of ingredients; *best sample*: of "
        f"{settings['candidates']}. Record: [soup_vs_sampling.json](../../runs/merging/soup_vs_sampling.json)."
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    records = root / "runs" / "merging"
    return {"swa_gain": swa_gain_block(records), "soup_vs_sampling": soup_block(records)}
