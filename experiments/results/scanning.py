"""docs/results/scanning.md: errors of scans by budget, errors of the rule `untrained`, and a scan of a large one."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/scanning.md"
SECONDS, MEMORY, WHOLE_MEMORY = 30.0, 0.5e9, 1e9  # targets for 6.7 billion weights: for 1% and for all


def _record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "benchmarks" / name).read_text(encoding="utf-8"))


def _link(name: str) -> str:
    return f"[{name}](../../runs/benchmarks/{name})"


def statistics_block(folder: Path) -> str:
    """Errors of statistics, by checkpoint and budget."""
    record = _record(folder, "scan_budgets.json")
    sizes = record["results"]["checkpoints"]
    rows = []
    for name, budgets in record["results"]["statistics"].items():
        reads: dict[float, list[str]] = {}
        for budget, found in budgets.items():
            if found["tensors"]:
                reads.setdefault(found["bytes_read_share"], []).append(budget)
        for share, alike in reads.items():
            found = budgets[alike[0]]
            errors = [f"{found[key]['median']:.2%}, {found[key]['p95']:.2%}" for key in ("std", "mean", "kurtosis")]
            title = f"{name} ({sizes[name] / 1e6:.1f} MB)"
            within = f"{found['std_within_two_errors']:.0%}"
            rows.append([title, ", ".join(alike), f"{share:.2%}", f"{found['tensors']}", *errors, within])
    header = ["checkpoint", "budget", "read", "sampled tensors", "std", "mean", "kurtosis", "within 2 errors"]
    return (
        "Errors for tensors that were read in part: relative errors of the standard deviation and of the kurtosis, "
        "and errors of the mean in standard deviations, each as the median and the 95th percentile over tensors and "
        f"{len(record['arguments']['seeds'])} seeds. The last column shows how often the standard deviation is within "
        f"twice the error that the scan reports ({_link('scan_budgets.json')}).\n\n"
        f"{markdown_table(header, rows, numbers=True)}\n\n"
        "Tensors of up to 32 KiB are always read completely, and at least four blocks of 4 KiB of each other tensor. "
        "For small checkpoints, this can exceed the budget. With a budget of 100%, nothing is sampled, and "
        "there is no error."
    )


def population_block(folder: Path) -> str:
    """Errors of embeddings and predictions."""
    found = _record(folder, "scan_budgets.json")["results"]["population"]
    rows = [
        [
            budget,
            f"{row['bytes_read_share']:.1%}",
            f"{row['distance']:.3f}",
            f"{row['told_error']:.3f}",
            f"{row['prediction_error']:.4f}",
            f"{row['r2']:.2f}",
        ]
        for budget, row in found["budgets"].items()
    ]
    header = ["budget", "read", "embedding distance", "reported error", "change of the prediction", "R²"]
    networks, whole = found["networks"], found["budgets"]["100%"]["r2"]
    return (
        f"{networks['test']} MLPs of {found['weights']:,} weights were scanned; a SANE and a ridge probe were trained "
        f"on {networks['train']} others. The probe predicts the test accuracy (standard deviation "
        f"{found['accuracy_std']:.3f}) from statistics of the layers. *Embedding distance* is the root mean square "
        "distance to the embedding of the whole network; between two of the networks it is "
        f"{found['distance_between_networks']:.3f} ({_link('scan_budgets.json')}).\n\n"
        f"{markdown_table(header, rows, numbers=True)}\n\n"
        f"The features and the penalty of the probe were selected on {networks['validation']} others, where its "
        f"R² is {found['probe']['validation_r2']:.2f}; on the test networks it is {whole:.2f} with all weights. The "
        "change of the prediction shows what a budget costs, whether or not the probe generalises."
    )


def untrained_block(folder: Path) -> str:
    """How often trained networks are called untrained, and fresh ones are missed."""
    record = _record(folder, "untrained.json")
    results, arguments = record["results"], record["arguments"]
    trained, fresh = results["trained"], results["fresh"]
    rows = [
        [
            budget,
            f"{found['trained_called']} of {trained} ({found['trained_called'] / trained:.0%})",
            f"{found['fresh_missed']} of {fresh} ({found['fresh_missed'] / fresh:.0%})",
        ]
        for budget, found in results["budgets"].items()
    ]
    accuracies = [row["accuracy"] for row in results["networks"] if row["is_trained"]]
    missed = [row for row in results["networks"] if not row["is_trained"] and not all(row["called"].values())]
    kinds = ", ".join(sorted({row["initialisation"] for row in missed}))
    return (
        f"{trained} networks (perceptrons, convolutional networks and transformers, with layers of up to "
        f"{arguments['width']} channels and four initialisations) were scanned before and after {arguments['steps']} "
        f"steps of training, which give test accuracies of {min(accuracies):.0%} to {max(accuracies):.0%} "
        f"({_link('untrained.json')}).\n\n"
        f"{markdown_table(['budget', 'trained, called untrained', 'fresh, not recognised'], rows, numbers=True)}\n\n"
        f"Initialisations of those that were not recognised: {kinds or 'none'}. To avoid false "
        "alarms for trained networks, the rule reports nothing without enough evidence, such as the spectrum of "
        "normal weights, which requires all of them."
    )


def large_block(folder: Path) -> str:
    """Seconds and memory of a scan of 6.7 billion weights, and whether the targets were met."""
    record = _record(folder, "scan_large.json")
    results, hardware = record["results"], record["hardware"]
    budgets = results["budgets"]
    rows = [
        [
            budget,
            f"{found['bytes_read'] / 1e6:,.0f} MB",
            f"{found['seconds']:.1f} s",
            f"{found['peak_anonymous_bytes'] / 1e9:.2f} GB",
        ]
        for budget, found in budgets.items()
    ]
    weights = budgets["1%"]["weights"]
    part, whole = budgets["1%"], budgets["100%"]["peak_anonymous_bytes"]
    is_met = part["seconds"] < SECONDS and part["peak_anonymous_bytes"] < MEMORY and whole < WHOLE_MEMORY
    return (
        f"{weights / 1e9:.1f} billion weights in float16, {results['weight_bytes'] / 1e9:.1f} GB in "
        f"{results['shards']} shards, from a local disk, with {hardware['torch_threads']} threads on "
        f"{hardware['cpu']} ({_link('scan_large.json')}). The target is {'met' if is_met else '**not met**'}: "
        f"1% in less than {SECONDS:.0f} s and {MEMORY / 1e9:.1f} GB of anonymous memory, and everything in less than "
        f"{WHOLE_MEMORY / 1e9:.0f} GB.\n\n"
        f"{markdown_table(['budget', 'read', 'time', 'peak anonymous memory'], rows, numbers=True)}"
    )


def blocks(root: Path) -> dict[str, str]:
    """All blocks of the page."""
    return {
        "statistics": statistics_block(root),
        "population": population_block(root),
        "untrained": untrained_block(root),
        "large_scan": large_block(root),
    }
