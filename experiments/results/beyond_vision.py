"""docs/results/beyond_vision.md: properties predicted for policies and the networks of ACAS Xu."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/beyond_vision.md"
PARTS = ("baselines", "seed_0", "seed_1", "seed_2")
FEATURES = {
    "shape": "shape alone, ridge",
    "shape_trees": "shape alone, random forest",
    "weights": "W, aligned",
    "statistics_overall": "s(W) of the whole network",
    "statistics": "s(W) per layer",
    "tokens": "tokens, mean and spread per layer, no autoencoder",
    "sane_mean": "SANE, mean (paper)",
    "sane_layer_mean": "SANE, mean per layer",
    "sane_layer_mean_std": "SANE, mean and spread per layer",
    "sane_layer_moments": "SANE, moments per layer",
    "sane_layer_covariance": "SANE, covariance per layer",
    "sane_best": "**SANE, pooling chosen in every fold**",
}
POLICY_TASKS = {
    "algorithm": "algorithm, all policies",
    "algorithm_actor_critic": "algorithm, actor-critics",
    "algorithm_same_shape": "algorithm, new shape, shapes of several algorithms",
    "family": "family",
    "family_new_environment": "family, new environment",
}
ACAS_TASKS = {
    "advisory": "advisory",
    "advisory_new_tau": "advisory, new tau",
    "tau": "tau",
    "tau_new_advisory": "tau, new advisory",
}
NUMBER_TASKS = {"tau_number": "network left out", "tau_number_new_advisory": "advisory left out"}


def _seeds(result: dict[str, Any] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return result if isinstance(result, list) else [result]


def _spread(values: Sequence[float]) -> str:
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def _accuracy(result: dict[str, Any] | list[dict[str, Any]]) -> str:
    """Mean over seeds, interval of the median seed, and a star if permuted labels are rarely as good."""
    seeds = sorted(_seeds(result), key=lambda found: found["accuracy"])
    low, high = seeds[len(seeds) // 2]["interval"]
    return f"{fmean(found['accuracy'] for found in seeds):.2f} [{low:.2f}, {high:.2f}]{_star(result)}"


def _star(result: dict[str, Any] | list[dict[str, Any]]) -> str:
    value = _seeds(result)[0].get("p_value")
    return r"\*" if value is not None and value <= 0.05 else ""


def _chance(tasks: dict[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Results of guessing: a random label, the most frequent one, permuted labels."""
    guesses = [f"{1 / len(tasks[name]['labels']):.2f}" for name in names]
    majority = [f"{tasks[name]['features']['statistics']['chance']:.2f}" for name in names]
    rows = [["any label", *guesses], ["most frequent label of the others", *majority]]
    for feature, title in (("statistics", "s(W)"), ("sane_best", "SANE")):
        found = [_seeds(tasks[name]["features"][feature])[0] for name in names]
        cells = [f"{result['permuted_mean']:.2f}, {result['permuted_high']:.2f}" for result in found]
        rows.append([f"permuted labels, {title} per layer: mean, 95%", *cells])
    rows[-1][0] = "permuted labels, SANE, pooling chosen: mean, 95%"
    return rows


def accuracy_table(tasks: dict[str, Any], columns: dict[str, str]) -> str:
    """Features as rows, tasks as columns, and results of guessing at the end."""
    first = tasks[next(iter(columns))]["features"]
    rows = [
        [title, *(_accuracy(tasks[name]["features"][feature]) for name in columns)]
        for feature, title in FEATURES.items()
        if feature in first
    ]
    counts = [[f"{tasks[name]['networks']} / {tasks[name]['groups']}" for name in columns]]
    counted = [["*networks / left out one at a time*", *cells] for cells in counts]
    gains = []
    for features in (tasks[name]["features"] for name in columns):
        reached = fmean(found["accuracy"] for found in _seeds(features["sane_best"]))
        gains.append(f"{reached - features['statistics']['accuracy']:+.2f}")
    gained = [["*SANE, pooling chosen, over s(W) per layer*", *gains]]
    return markdown_table(
        ["accuracy", *columns.values()], [*rows, *gained, *_chance(tasks, list(columns)), *counted], numbers=True
    )


def number_table(tasks: dict[str, Any]) -> str:
    """Tau as a number."""
    first = tasks[next(iter(NUMBER_TASKS))]["features"]
    rows = []
    for feature, title in FEATURES.items():
        if feature not in first:
            continue
        cells = []
        for name in NUMBER_TASKS:
            found = tasks[name]["features"][feature]
            taus = [result["kendall_tau"] for result in _seeds(found)]
            cells += [f"{_spread(taus)}{_star(found)}", _spread([result["r2"] for result in _seeds(found)])]
        rows.append([title, *cells])
    permuted = []
    for name in NUMBER_TASKS:
        result = tasks[name]["features"]["statistics"]
        permuted += [f"{result['permuted_mean']:.2f}, {result['permuted_high']:.2f}", ""]
    rows.append(["permuted numbers, s(W) per layer: mean, 95%", *permuted])
    header = [
        "tau as a number",
        *(f"{kind}, {title}" for title in NUMBER_TASKS.values() for kind in ("Kendall's tau", "R2")),
    ]
    return markdown_table(header, rows, numbers=True)


def _merged(records: Sequence[dict[str, Any]], population: str) -> tuple[dict[str, Any], list[float]]:
    """Tasks with the features of all records, in order of seeds, and R2 of all autoencoders."""
    tasks: dict[str, Any] = {}
    errors: list[float] = []
    for record in records:
        results = record["results"][population]
        errors += results["reconstruction_r2"]
        for name, task in results["tasks"].items():
            features = tasks.setdefault(name, {**task, "features": {}})["features"]
            for feature, found in task["features"].items():
                features[feature] = features.get(feature, []) + found if isinstance(found, list) else found
    return tasks, errors


def _facts(records: Sequence[dict[str, Any]], errors: Sequence[float], files: Sequence[str]) -> str:
    baselines, first, *_ = records
    settings = first["arguments"]
    links = ", ".join(f"[{file}](../../runs/beyond_vision/{file})" for file in files)
    return (
        f"Accuracy, 95% interval (Wilson); {len(records) - 1} seeds of folds and autoencoders for SANE: mean, and "
        f"interval of the median one. \\* permuted labels score as high in at most 5% of {settings['permutations']} "
        f"permutations (of SANE's first seed). Autoencoders: {settings['folds']} per seed, {settings['steps']} "
        f"steps, hidden size {settings['hidden_size']}, {settings['latent_dim']} latent dimensions; R2 on the "
        f"unseen networks of their fold: {_spread(errors)}. "
        f"{sum(record['seconds'] for record in records):.0f} s on {baselines['hardware']['torch_threads']} thread "
        f"of a busy {baselines['hardware']['cores']}-core CPU. Records: {links}."
    )


def _confusion(tasks: dict[str, Any], name: str, feature: str) -> str:
    """Confusion matrix: true labels in rows, predicted labels in columns."""
    table = _seeds(tasks[name]["features"][feature])[0]["confusion"]
    rows = [[label, *(str(row.get(other, 0)) for other in table)] for label, row in table.items()]
    return markdown_table([f"{FEATURES[feature].strip('*')}: true class (rows)", *table], rows, numbers=True)


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    folder = root / "runs" / "beyond_vision"
    texts = {}
    for population, columns in (("policies", POLICY_TASKS), ("acas_xu", ACAS_TASKS)):
        files = [f"{population}_{part}.json" for part in PARTS]
        records = [json.loads((folder / file).read_text(encoding="utf-8")) for file in files]
        tasks, errors = _merged(records, population)
        parts = [accuracy_table(tasks, columns)]
        if population == "acas_xu":
            parts.append(number_table(tasks))
        else:
            parts += [_confusion(tasks, "algorithm_same_shape", name) for name in ("statistics", "sane_best")]
        texts[population] = "\n\n".join([*parts, _facts(records, errors, files)])
    return texts
