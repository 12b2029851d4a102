"""docs/results/spectra.md: spectra of a zoo, and spectra as features."""

import json
from pathlib import Path

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/spectra.md"
PROPERTY_TITLES = {"test_accuracy": "test accuracy", "epoch": "epoch", "generalization_gap": "generalisation gap"}
SUMMARY_TITLES = {
    "mean_alpha": "mean alpha",
    "mean_alpha_weighted": "mean weighted alpha",
    "mean_log_frobenius_norm": "mean log Frobenius norm",
    "mean_log_spectral_norm": "mean log spectral norm",
    "mean_stable_rank": "mean stable rank",
    "mean_weight_correlation": "mean weight correlation",
}


def zoo_spectra_block(folder: Path) -> str:
    """Correlations over one zoo, and alpha at the beginning and the end of one run."""
    record = json.loads((folder / "zoo_spectra.json").read_text(encoding="utf-8"))
    found, curves = record["results"]["against_test_accuracy"], record["results"]["through_training"]
    rows = [
        [title, f"{found['correlation'][name]['pearson']:.2f}", f"{found['correlation'][name]['kendall_tau']:.2f}"]
        for name, title in SUMMARY_TITLES.items()
    ]
    table = markdown_table([f"{found['networks']} networks, against test accuracy", "Pearson", "Kendall tau"], rows)
    changes = "; ".join(f"`{name}` {alpha[0]:.1f} to {alpha[-1]:.1f}" for name, alpha in curves["alpha"].items())
    return (
        f"{table}\n"
        "\n"
        f"{record['data']['zoo']}; test accuracy {min(found['test_accuracy']):.2f} to "
        f"{max(found['test_accuracy']):.2f}. These are correlations over one small zoo; do not generalise from "
        f"them. Alpha of the run with the best validation accuracy, from epoch {curves['epoch'][0]} to "
        f"{curves['epoch'][-1]}: {changes}. Record: [zoo_spectra.json](../../runs/analysis/zoo_spectra.json)."
    )


def spectral_probe_block(folder: Path) -> str:
    """R2 on test networks of spectra and other features."""
    record = json.loads((folder / "spectral_probe.json").read_text(encoding="utf-8"))
    poolings = " or ".join(f"`{name}`" for name in record["arguments"]["poolings"])
    titles = {"weights": "W", "layer_statistics": "s(W)", "spectral_features": "spectra"}
    titles["sane_best"] = f"SANE, {poolings}"
    probe = record["results"]["probe"]
    rows = [[PROPERTY_TITLES[name], *(f"{row[kind]['r2']:.3f}" for kind in titles)] for name, row in probe.items()]
    table = markdown_table(["R2 on test networks", *titles.values()], rows)
    return f"{table}\n\nRecord: [spectral_probe.json](../../runs/analysis/spectral_probe.json)."


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    records = root / "runs" / "analysis"
    return {"zoo_spectra": zoo_spectra_block(records), "spectral_probe": spectral_probe_block(records)}
