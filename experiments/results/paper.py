"""docs/results/zoos.md: zoos of `paper_zoos.py`, and results of `paper_tables.py`."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/zoos.md"
RECORDS = Path("runs/paper")
FAMILIES = {
    "mnist": "MNIST, CNN-s",
    "fashion": "Fashion-MNIST, CNN-s",
    "usps": "USPS, CNN-s",
    "cifar10": "CIFAR-10, CNN-l",
    "resnet20": "CIFAR-10, ResNet-20",
}
PROPERTIES = {"test_accuracy": "accuracy", "epoch": "epoch", "generalization_gap": "gap"}
FEATURES = {
    "weights": "W",
    "layer_statistics": "s(W)",
    "spectral_features": "spectra of W",
    "weight_best": "profile of W",
    "sane_mean": "SANE, mean",
    "sane_best": "SANE, best pooling",
}
WITHOUT_MODEL = ("weights", "layer_statistics", "spectral_features")
METHODS = {
    "anchors": "anchors",
    "reconstructed_anchors": "anchors, reconstructed",
    "sane_kde": "SANE, KDE30",
    "sane_subsampled": "SANE, SUB",
    "sane_bootstrapped": "SANE, BOOT",
    "sane_prior": "SANE, from the prior",
    "anchor_noise": "anchor + noise, same distance",
    "anchor_noise_selected": "anchor + noise, selected",
    "anchor_average": "average of five anchors",
    "soup": "greedy soup of aligned anchors",
    "scratch": "scratch",
}
SANE_METHODS = ("sane_kde", "sane_subsampled", "sane_bootstrapped")
SELECTED_METHODS = ("sane_subsampled", "sane_bootstrapped", "anchor_noise_selected")
TARGETS = {"usps": "USPS", "fashion": "Fashion-MNIST"}
FEW = (1, 3, 5)
FEW_METHODS = ("anchors", "sane_subsampled", "sane_bootstrapped", "anchor_noise_selected", "scratch")
# Of comparable diversity: the soup is one network.
RIVALS = ("anchor_noise", "anchor_noise_selected", "anchor_average", "scratch")
Row = Mapping[str, Any]  # row of a probe table: scores by kind of features


def load_runs(folder: Path, family: str) -> list[dict[str, Any]]:
    """Records of one family, by seed."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{family}_[0-9]*.json"))]


def present(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by family, for families with records."""
    return {family: runs for family in FAMILIES if (runs := load_runs(folder, family))}


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and, for several seeds, standard deviation."""
    numbers = list(values)
    mean = f"{statistics.mean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def zoos_block(folder: Path) -> str:
    """Size and quality of every zoo."""
    rows = []
    for path in sorted((folder / "zoos").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        results = record["results"]
        arguments, splits = results["arguments"], results["splits"]
        runs = "/".join(str(splits[name]["runs"]) for name in ("train", "validation", "test"))
        rows.append([
            f"[{path.stem}](../../{RECORDS}/zoos/{path.name})", arguments["architecture"], runs,
            str(results["excluded"]), str(arguments["epochs"]), f"{splits['test']['test_accuracy']:.3f}",
            minutes(record["seconds"]),
        ])  # fmt: skip
    header = ["zoo", "architecture", "train / validation / test runs", "left out", "epochs", "accuracy", "minutes"]
    return (
        f"{markdown_table(header, rows, numbers=True)}\n"
        "\n"
        "*accuracy*: mean of the final test networks; *left out*: runs that diverged, which are listed in the zoo; "
        f"*minutes*: wall time on {hardware(folder)}, shared with other jobs."
    )


def minutes(seconds: float) -> str:
    """Minutes of zoos as whole numbers, if known."""
    return f"{seconds / 60:.0f}" if seconds >= 30 else "<1"


def hardware(folder: Path) -> str:
    """The machine of the zoos' records."""
    cores = {
        json.loads(path.read_text(encoding="utf-8"))["hardware"]["usable_cores"]
        for path in (folder / "zoos").glob("*.json")
    }
    return f"{'/'.join(map(str, sorted(cores)))} CPU cores"


def probing_block(folder: Path) -> str:
    """R2 and Kendall's tau of every kind of features, per zoo and property."""
    values, ranks = probed(folder, "probe"), probed(folder, "ranks")
    wins, cells = cells_won(values, "r2"), len(values)
    tables = [
        probe_rows("R2", values, "r2"),
        probe_rows("Kendall's tau, probes of values", values, "kendall_tau"),
        probe_rows("Kendall's tau, probes of ranks", ranks, "kendall_tau"),
    ]
    note = (
        "The best features of each row are bold. "
        f"SANE's best pooling exceeds s(W) in {wins} of {cells} cells for R2, the metric by which it is "
        f"chosen, in {cells_won(values, 'kendall_tau')} for Kendall's tau of the same probes, and in "
        f"{cells_won(ranks, 'kendall_tau')} for Kendall's tau of rank probes. It exceeds all of W, s(W) and spectra "
        f"in {cells_won(values, 'r2', WITHOUT_MODEL)} cells for R2 and in "
        f"{cells_won(ranks, 'kendall_tau', WITHOUT_MODEL)} for rank probes; the profile of W, which needs no "
        f"autoencoder, in {cells_won(values, 'r2', ('weight_best',))} and "
        f"{cells_won(ranks, 'kendall_tau', ('weight_best',))}. SANE: mean ± standard deviation over "
        "seeds; features of the weights have no seed. *spectra of W*: norms, exponent of the tail, stable rank and "
        "correlation of every weight matrix. *profile of W*: the statistics that the poolings `decoded_profile` "
        "and `decoded_distribution` compute from decoded weights, computed from the original weights; the better "
        "of the two is chosen as for SANE."
    )
    return "\n\n".join([*tables, note])


def probed(folder: Path, part: str) -> dict[str, list[Row]]:
    """Probe tables of all seeds by zoo and property, of values (`probe`) or of ranks (`ranks`)."""
    cells: dict[str, list[Row]] = {}
    for runs in present(folder).values():
        for zoo in runs[0]["results"].get(part, {}):
            for name, title in PROPERTIES.items():
                cells[f"{zoo}: {title}"] = [_probe_row(run["results"], part, zoo, name) for run in runs]
    return cells


def is_won(rows: Sequence[Row], metric: str, rivals: Sequence[str] = ("layer_statistics",)) -> bool:
    """Whether SANE's best pooling exceeds all rivals in the mean over seeds."""
    return all(_mean_score(rows, "sane_best", metric) > _mean_score(rows, kind, metric) for kind in rivals)


def _mean_score(rows: Sequence[Row], kind: str, metric: str) -> float:
    return statistics.mean(row[kind][metric] for row in rows)


def cells_won(cells: Mapping[str, Sequence[Row]], metric: str, rivals: Sequence[str] = ("layer_statistics",)) -> int:
    """Number of cells in which SANE's best pooling exceeds all rivals."""
    return sum(is_won(rows, metric, rivals) for rows in cells.values())


def probe_rows(title: str, cells: Mapping[str, Sequence[Row]], metric: str) -> str:
    """One metric of all zoos and properties, as a table."""
    lines = []
    for name, rows in cells.items():
        shown = [_probe_cell([row[kind][metric] for row in rows], kind) for kind in FEATURES]
        best = max(range(len(shown)), key=lambda index: _mean_score(rows, [*FEATURES][index], metric))
        shown[best] = f"**{shown[best]}**"
        lines.append([name, *shown])
    return markdown_table([f"{title}: zoo and property", *FEATURES.values()], lines, numbers=True)


def _probe_row(results: Mapping[str, Any], part: str, zoo: str, name: str) -> Row:
    """Scores of every kind of features for one property; spectra of values are a part of the record of their own."""
    row = results[part][zoo][name]
    spectra = results["spectra"][zoo][name] if part == "probe" else {}
    return {**row, "weight_best": _best_profile(row), **spectra}


def _best_profile(row: Row) -> dict[str, Any]:
    """Profile of the original weights, with or without spectra, selected like SANE's poolings."""
    rivals = [row[kind] for kind in ("weight_profile", "weight_distribution") if kind in row]
    best: dict[str, Any] = max(rivals, key=lambda found: found["validation_r2"])
    return best


def _probe_cell(values: Sequence[float], kind: str) -> str:
    return spread(values) if kind.startswith("sane") else f"{values[0]:.3f}"


def reconstruction_block(folder: Path) -> str:
    """How well test networks come back."""
    rows = []
    for family, runs in present(folder).items():
        for zoo in runs[0]["results"].get("reconstruction", {}):
            found = [run["results"]["reconstruction"][zoo] for run in runs]
            rows.append([
                f"{FAMILIES[family]}: {zoo}", spread(row["r2"] for row in found),
                f"{found[0]['accuracy_original']:.3f}", spread(row["accuracy_reconstructed"] for row in found),
                str(len(found)),
            ])  # fmt: skip
    header = ["zoo", "R2 of weights", "accuracy", "accuracy of reconstructions", "seeds"]
    return markdown_table(header, rows, numbers=True)


def sampling_table(runs: Sequence[dict[str, Any]]) -> str:
    """Accuracy of every method at the reported epochs, and diversity of its networks."""
    found = sampled(runs)
    epochs = sorted({epoch for methods in found for epoch in methods["anchors"]["accuracy"]}, key=int)
    rows = []
    for name, title in METHODS.items():
        if name not in found[0]:
            continue
        cells = []
        for epoch in epochs:
            values = [methods[name]["accuracy"].get(epoch) for methods in found]
            cells.append(spread(statistics.mean(part) for part in values if part))
        for key in ("nearest_training_distance", "pairwise_distance", "agreement"):
            known = [methods[name].get(key) for methods in found]
            cells.append(spread((value for value in known if value is not None), 2) if known[0] is not None else "-")
        rows.append([title, *cells])
    header = ["method", *(f"epoch {epoch}" for epoch in epochs), "to nearest", "pairwise", "agreement"]
    return markdown_table(header, rows, numbers=True)


def goals(runs: Sequence[dict[str, Any]]) -> str:
    """Whether the goals of sampling were reached, in sentences generated from the record."""
    found = sampled(runs)

    def mean(name: str, epoch: str) -> float:
        return statistics.mean(statistics.mean(methods[name]["accuracy"][epoch]) for methods in found)

    parts = []
    for epoch in ("0", "1"):
        best = max(SANE_METHODS, key=lambda name: mean(name, epoch))
        rival = max(RIVALS, key=lambda name: mean(name, epoch))
        won = "above" if mean(best, epoch) > mean(rival, epoch) else "not above"
        parts.append(
            f"epoch {epoch}: {METHODS[best]} {mean(best, epoch):.3f}, {won} the best other new network "
            f"({METHODS[rival]}, {mean(rival, epoch):.3f})"
        )
    gap = mean("sane_bootstrapped", "0") - mean("anchors", "0")
    parts.append(f"BOOT {'reaches' if gap >= 0 else 'does not reach'} the anchors ({gap:+.3f})")
    return "; ".join(parts)


def sampling_block(folder: Path) -> str:
    """One table per family."""
    parts = []
    for family, runs in present(folder).items():
        if not (runs := [run for run in runs if "sampling" in run["results"]]):
            continue
        facts = runs[0]["results"]["sampling"]
        note = (
            f"{goals(runs)[0].upper() + goals(runs)[1:]}. {facts['num_anchors']} anchors, {facts['num_kept']} "
            f"networks per method, {facts['num_candidates']} candidates, bandwidth {bandwidths_of(runs)}, "
            f"{seeds_of(runs)}. Validation accuracy after each round of BOOT, first seed: {rounds_of(facts)}. "
            f"Records: {links(family, runs)}."
        )
        parts.append(f"### {FAMILIES[family]}\n\n{sampling_table(runs)}\n\n{note}")
    return "\n\n".join(parts)


def bandwidths_of(runs: Sequence[dict[str, Any]]) -> str:
    """The bandwidth, or those of all seeds if they differ."""
    found = [str(run["results"]["sampling"]["bandwidth"]) for run in runs]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def seeds_of(runs: Sequence[dict[str, Any]]) -> str:
    """Number of seeds, also of methods with fewer."""
    curves = [methods["anchors"]["accuracy"] for methods in sampled(runs)]
    epochs = sorted({epoch for curve in curves for epoch in curve}, key=int)
    fewer = {epoch: count for epoch in epochs if (count := sum(epoch in curve for curve in curves)) < len(curves)}
    rest = ", ".join(f"epoch {epoch}: {count}" for epoch, count in fewer.items())
    return f"{len(curves)} seed{'s' * (len(curves) > 1)}" + (f" ({rest})" if rest else "")


def rounds_of(facts: Mapping[str, Any]) -> str:
    """Validation accuracy after each round of bootstrapping, for the first seed."""
    return ", ".join(f"{accuracy:.3f}" for accuracy in facts["bootstrap_validation_accuracy"])


def tradeoff_block(folder: Path) -> str:
    """Accuracy before fine-tuning at every bandwidth, and bandwidths that reach the anchors."""
    rows, words, wins = [], [], 0
    for family, title in FAMILIES.items():
        if not (runs := load_runs(folder / "tradeoff", family)):
            continue
        found = [run["results"] for run in runs]
        anchors = [statistics.mean(run["references"]["anchors"]["test_accuracy"]) for run in found]
        reached = []
        for bandwidth in found[0]["bandwidths"]:
            methods = [run["bandwidths"][bandwidth] for run in found]
            accuracy = {
                key: [statistics.mean(row[key]["test_accuracy"]) for row in methods] for key in SELECTED_METHODS
            }
            means = {key: statistics.mean(values) for key, values in accuracy.items()}
            wins += means["sane_subsampled"] > means["anchor_noise_selected"]
            distance = [row["sane_bootstrapped"]["nearest_training_distance"] for row in methods]
            if means["sane_bootstrapped"] >= statistics.mean(anchors):
                reached.append(f"{bandwidth} (distance {statistics.mean(distance):.2f})")
            near = spread((row["sane_subsampled"]["nearest_training_distance"] for row in methods), 2)
            cells = [spread(accuracy[key]) for key in SELECTED_METHODS]
            rows.append([f"{title}: {bandwidth}", near, *cells, spread(distance, 2), spread(anchors)])
        where = f"at bandwidth {', '.join(reached)}" if reached else "at none of these bandwidths"
        words.append(f"{title} {where}")
    if not rows:
        return ""
    header = [
        "bandwidth",
        "to nearest, SUB",
        *(METHODS[key] for key in SELECTED_METHODS),
        "to nearest, BOOT",
        "anchors",
    ]
    return (
        f"{markdown_table(header, rows, numbers=True)}\n"
        "\n"
        f"Averaged over seeds, SUB exceeds noise in {wins} of {len(rows)} rows. BOOT reaches the anchors as "
        f"follows: {'; '.join(words)}."
    )


def transfer_block(folder: Path) -> str:
    """Results with anchors of another dataset, and with few anchors of the target; one table per target."""
    parts = []
    for target, title in TARGETS.items():
        far = load_runs(folder / "transfer", f"mnist_to_{target}")
        if far:
            parts.append(f"""### MNIST to {title}: anchors of MNIST

{sampling_table(far)}

{goals(far)[0].upper() + goals(far)[1:]}. {seeds_of(far)}.""")
        few = {count: load_runs(folder / "transfer", f"{target}_few_{count}") for count in FEW}
        few = {count: runs for count, runs in few.items() if runs}
        if few:
            parts.append(f"""### MNIST to {title}: few anchors of {title}, two epochs old

{few_table(few)}""")
    return "\n\n".join(parts)


def few_table(studies: Mapping[int, Sequence[dict[str, Any]]]) -> str:
    """Methods by the number of anchors."""
    rows, epochs = [], ["0", "1", "5", "25"]
    for count, runs in studies.items():
        found = [run["results"]["methods"] for run in runs]
        epochs = [epoch for epoch in epochs if epoch in found[0]["anchors"]["accuracy"]]
        for name in FEW_METHODS:
            cells = [
                spread(statistics.mean(methods[name]["accuracy"][epoch]) for methods in found) for epoch in epochs
            ]
            rows.append([f"{count} anchor{'s' * (count > 1)}: {METHODS[name]}", *cells])
    return markdown_table(["method", *(f"epoch {epoch}" for epoch in epochs)], rows, numbers=True)


def sampled(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of sampling: a part of a family's record, the whole record of a transfer study."""
    found = [run["results"].get("sampling", run["results"]) for run in runs]
    return [part["methods"] for part in found if "methods" in part]


def links(family: str, runs: Sequence[dict[str, Any]]) -> str:
    """Links to the records of a family."""
    names = [f"{family}_{run['seed']}.json" for run in runs]
    return ", ".join(f"[{name}](../../{RECORDS}/{name})" for name in names)


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    folder = root / RECORDS
    return {
        "zoos": zoos_block(folder),
        "reconstruction": reconstruction_block(folder),
        "probing": probing_block(folder),
        "sampling": sampling_block(folder),
        "tradeoff": tradeoff_block(folder),
        "transfer": transfer_block(folder),
    }
