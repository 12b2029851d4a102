"""docs/results/ablations.md: the effect of single design choices, and of the size of the zoo."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/ablations.md"
FOLDER = Path("runs") / "paper" / "ablations"
STUDIES = ("alignment", "windows", "tokens", "latent", "loss")
PROPERTIES = {"test_accuracy": "accuracy", "epoch": "epoch", "generalization_gap": "gap"}
COLUMNS: dict[str, tuple[str, ...]] = {
    "R2": ("r2",),
    "accuracy kept": ("accuracy_kept",),
    "accuracy: mean": ("probe", "test_accuracy", "sane_mean", "r2"),
    "best": ("probe", "test_accuracy", "sane_best", "r2"),
    "epoch: mean": ("probe", "epoch", "sane_mean", "r2"),
    "best ": ("probe", "epoch", "sane_best", "r2"),
    "gap: mean": ("probe", "generalization_gap", "sane_mean", "r2"),
    "best  ": ("probe", "generalization_gap", "sane_best", "r2"),
    "sampled": ("sampling", "accuracy", "sane_subsampled"),
    "distance": ("sampling", "nearest_training_distance", "sane_subsampled"),
}
SAMPLED: dict[str, tuple[str, ...]] = {
    "anchors decoded": ("sampling", "accuracy", "reconstructed_anchors"),
    "subsampled": ("sampling", "accuracy", "sane_subsampled"),
    "bootstrapped": ("sampling", "accuracy", "sane_bootstrapped"),
    "anchor + noise": ("sampling", "accuracy", "anchor_noise_selected"),
    "distance": ("sampling", "nearest_training_distance", "sane_subsampled"),
}
Row = Mapping[str, Any]  # row of a record: title, and measurements by seed


def load(folder: Path, study: str) -> dict[str, Any]:
    """Record of a study."""
    return json.loads((folder / f"{study}.json").read_text(encoding="utf-8"))


def values(row: Row, path: Sequence[str]) -> list[float]:
    """Measurements of all seeds."""
    found = []
    for measured in row["seeds"].values():
        value: Any = measured
        for name in path:
            value = value[name]
        found.append(float(value))
    return found


def spread(row: Row, path: Sequence[str]) -> str:
    """Mean over seeds, with the standard deviation if there are several."""
    found = values(row, path)
    deviation = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{deviation}"


def compared(row: Row, base: Row, path: Sequence[str]) -> str:
    """Mean over seeds, with an arrow if every seed lies outside the 95% prediction interval of the base's seeds."""
    found, expected = values(row, path), values(base, path)
    count, middle = len(expected), statistics.mean(expected)
    margin = stats.t.ppf(0.975, count - 1) * statistics.stdev(expected) * (1 + 1 / count) ** 0.5
    is_above, is_below = min(found) > middle + margin, max(found) < middle - margin
    return f"{statistics.mean(found):.3f}{' ↑' if is_above else ' ↓' if is_below else ''}"


def study_block(folder: Path, study: str, base: Row) -> str:
    """One row per variant under the base's."""
    rows = [[f"**{base['title']}**", *(spread(base, path) for path in COLUMNS.values())]]
    variants = load(folder, study)["results"]
    rows += [[row["title"], *(compared(row, base, path) for path in COLUMNS.values())] for row in variants.values()]
    header = ["", *COLUMNS]
    if study == "tokens":
        header.append("latents per weight")
        for line, row in zip(rows, [base, *variants.values()], strict=True):
            line.append(f"{values(row, ('latents_per_weight',))[0]:.2f}")
    return "\n\n".join([markdown_table(header, rows, numbers=True), footnote(study, [base, *variants.values()])])


def footnote(study: str, rows: Sequence[Row]) -> str:
    """Number of seeds, duration, and link to the record."""
    counts = sorted({len(row["seeds"]) for row in rows})
    seconds = max(max(values(row, ("seconds",))) for row in rows)
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    plural = "s" if counts[-1] > 1 else ""
    return (
        f"{seeds} seed{plural}; at most {seconds:.0f} s of wall time per variant, next to other jobs. Record: "
        f"[{study}.json](../../{FOLDER.as_posix()}/{study}.json)."
    )


def setting_block(folder: Path) -> str:
    """Sizes, hardware, and results of the base's anchors and baselines."""
    record = load(folder, "base")
    base, sizes = record["results"]["base"], record["arguments"]["sizes"]
    counts, hardware = record["data"]["networks"], record["hardware"]
    threads = hardware["torch_threads"]
    checkpoints = counts["hyper"]["test"]
    epochs = f"{sizes['zoo_epochs']} epochs on {sizes['train_limit']} images of {record['data']['images']}"
    rows = [[title, spread(base, path)] for title, path in SAMPLED.items()]
    rows.insert(0, ["anchors", spread(base, ("sampling", "accuracy", "anchors"))])
    text = (
        f"Zoos: {epochs} per run. Autoencoders: width {sizes['hidden_size']}, {sizes['num_layers']} + "
        f"{sizes['num_layers']} blocks, {sizes['steps']} steps of {sizes['batch_size']} networks, trained on "
        f"{sizes['base_runs']} runs that differ in hyper-parameters and {counts['seed']['train']} networks that "
        f"differ in their seed. Probes are fitted on {sizes['probe_runs']} of those runs and tested on "
        f"{checkpoints} networks. {sizes['num_candidates']} candidates are drawn and {sizes['num_kept']} kept. "
        f"Hardware: {hardware['usable_cores']}-core CPU, {threads} thread{'' if threads == 1 else 's'}."
    )
    header = ["base, sampling from the seed zoo", "test accuracy, no fine-tuning (last row: distance of subsampled)"]
    return f"{text}\n\n{markdown_table(header, rows, numbers=True)}"


def pooling_block(folder: Path) -> str:
    """Every pooling of the base's latents, and features that need no autoencoder."""
    base = load(folder, "base")["results"]["base"]
    first = next(iter(base["seeds"].values()))["probe"]
    names = [name for name in first["epoch"] if name not in ("sane_best", "sane_best_pooling")]
    rows = [
        [name.removeprefix("sane_"), *(spread(base, ("probe", key, name, "r2")) for key in PROPERTIES)]
        for name in [*names, "sane_best"]
    ]
    titles = {
        "weights": "W, no autoencoder",
        "layer_statistics": "s(W), no autoencoder",
        "weight_spectrum_distribution": "spectra and quantiles of W, no autoencoder",
        "weight_profile": "spectra and quantiles of W, no autoencoder",
        "weight_distribution": "quantiles of W, no autoencoder",
        "best": "the best for each property, chosen on training and validation runs",
    }
    rows = [[titles.get(row[0], f"`{row[0]}`"), *row[1:]] for row in rows]
    table = markdown_table(["test R2", *PROPERTIES.values()], rows, numbers=True)
    return f"{table}\n\n{footnote('base', [base])}"


def scale_block(folder: Path) -> str:
    """The same autoencoder trained on increasing numbers of networks."""
    variants = load(folder, "scale")["results"]
    rows = [[row["title"], *(spread(row, path) for path in COLUMNS.values())] for row in variants.values()]
    first = next(iter(variants.values()))
    reference = ["s(W)", "", ""]
    for key in PROPERTIES:
        reference += ["", spread(first, ("probe", key, "layer_statistics", "r2")).split(" ")[0]]
    rows.append([*reference, "", ""])
    return "\n\n".join(
        [markdown_table(["", *COLUMNS], rows, numbers=True), footnote("scale", list(variants.values()))]
    )


def batch_norm_block(folder: Path) -> str:
    """Effect of halo and conditioning on decoded ResNets."""
    variants = load(folder, "batchnorm")["results"]
    columns = {"R2": ("r2",), "anchors": ("sampling", "accuracy", "anchors"), **SAMPLED}
    rows = [[row["title"], *(spread(row, path) for path in columns.values())] for row in variants.values()]
    return "\n\n".join(
        [markdown_table(["", *columns], rows, numbers=True), footnote("batchnorm", list(variants.values()))]
    )


def blocks(root: Path) -> dict[str, str]:
    """Blocks of the page by marker, for all studies with a record."""
    folder = root / FOLDER
    base = load(folder, "base")["results"]["base"]
    others = {"scale": scale_block, "batchnorm": batch_norm_block}
    recorded = [study for study in (*STUDIES, *others) if (folder / f"{study}.json").exists()]
    return {
        "setting": setting_block(folder),
        "pooling": pooling_block(folder),
        **{study: study_block(folder, study, base) for study in recorded if study in STUDIES},
        **{study: others[study](folder) for study in recorded if study in others},
    }
