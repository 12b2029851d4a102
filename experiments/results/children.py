"""docs/results/children.md: families with common ancestors, and networks from prompts of few images."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table
from results.rates import DATA
from results.sources import source_line

PAGE = "docs/results/children.md"
PROMPTS = {"unlabelled": "20 unlabelled images", "shots_1": "1 image per class", "shots_5": "5 images per class"}
METHODS = {
    "ancestor": "ancestor, unchanged",
    "mean_child": "average of its training children",
    "nearest": "nearest child",
    "average_nearest": "average of the nearest children",
    "kernel_weights": "kernel ridge to the weights",
    "kernel_whole16": "kernel ridge to 16 principal directions",
    "kernel_whole64": "kernel ridge to 64 principal directions",
    "kernel_sane8": "kernel ridge to the latents of SANE",
    "scratch": "training from scratch",
    "finetuned": "fine-tuning of the ancestor",
    "search_weights": "fine-tuning from the best start",
    "search_whole16": "search in 16 principal directions",
    "search_whole64": "search in 64 principal directions",
    "search_sane8": "search in the latents of SANE",
    "child": "held-out child itself, trained on 1,000 images",
}
NOT_FROM_PROMPTS = ("ancestor", "mean_child", "child")
SANE = ("search_sane8", "kernel_sane8")
LINEAR = ("search_whole16", "search_whole64", "kernel_whole16", "kernel_whole64")
KINDS = {
    "SANE": SANE,
    "linear code": LINEAR,
    "nearest child": ("nearest",),
    "fine-tuning of the ancestor": ("finetuned",),
    "fine-tuning from the best start": ("search_weights",),
}
COMPARED = (
    ("SANE", "linear code"),
    ("SANE", "nearest child"),
    ("SANE", "fine-tuning of the ancestor"),
    ("linear code", "nearest child"),
    ("linear code", "fine-tuning of the ancestor"),
    ("linear code", "fine-tuning from the best start"),
)
CODES = {"sane": "SANE, tokens", "linear": "linear code, tokens", "whole": "linear code, whole networks"}
RESAMPLES = 2000
WANTED_GAIN = 0.1


def load_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by data set, in the order of `DATA`."""
    found = {name: folder / f"{name}_0.json" for name in DATA}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()}


def accuracies(results: Mapping[str, Any], prompt: str, method: str) -> list[float]:
    """Mean accuracy over draws and networks of each held-out combination; empty without the method."""
    if method in results["references"]:
        draws = [results["references"][method]]
    else:
        draws = results["prompts"][prompt]["accuracy"].get(method, [])
    by_combination: dict[str, list[float]] = {}
    for draw in draws:
        for combination, value in zip(results["combinations"], draw, strict=True):
            by_combination.setdefault(combination, []).append(value)
    return [sum(values) / len(values) for values in by_combination.values()]


def mean(values: Sequence[float]) -> float:
    """Mean of some values."""
    return sum(values) / len(values)


def difference(left: Sequence[float], right: Sequence[float]) -> tuple[float, float, float]:
    """Mean paired difference, and its 95% bootstrap interval over combinations."""
    pairs = [a - b for a, b in zip(left, right, strict=True)]
    draws = random.Random(0)
    resampled = sorted(mean(draws.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return mean(pairs), resampled[int(0.025 * RESAMPLES)], resampled[int(0.975 * RESAMPLES)]


def signed(found: tuple[float, float, float]) -> str:
    """A difference and its interval."""
    return f"{found[0]:+.3f}, {found[1]:+.3f} to {found[2]:+.3f}".replace("-", "\N{MINUS SIGN}")


def base_of(prompt: str) -> str:
    """The kind of prompt with which a kind of prompt is compared."""
    return "ancestor" if prompt == "unlabelled" else "finetuned"


def ranking(results: Mapping[str, Any], prompt: str) -> list[tuple[float, str]]:
    """Methods that a prompt can be given to, the most accurate first."""
    found = [(accuracies(results, prompt, name), name) for name in METHODS if name not in NOT_FROM_PROMPTS]
    return sorted(((mean(values), name) for values, name in found if values), reverse=True)


def best_of(results: Mapping[str, Any], prompt: str, methods: Sequence[str]) -> str | None:
    """Of some methods, the most accurate one on validation combinations, if there are any."""
    chosen = results["prompts"][prompt]["chosen"]
    found = [name for _, name in ranking(results, prompt) if name in methods]
    return max(found, key=lambda name: chosen[name]["accuracy"] if name in chosen else 0.0, default=None)


def verdict_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The best method for each kind of prompt, and how SANE and the linear code compare with their rivals."""
    rows, wins = [], {"sane": 0, "linear": 0, "other": 0}
    for prompt, shown in PROMPTS.items():
        for name, record in records.items():
            results = record["results"]
            (top, winner), (second, runner), *_ = ranking(results, prompt)
            wins["sane" if winner in SANE else "linear" if winner in LINEAR else "other"] += 1
            ends = [f"{METHODS[winner]} ({top:.3f})", f"{METHODS[runner]} ({second:.3f})"]
            gaps = [gap(results, prompt, *pair) for pair in COMPARED]
            rows.append([shown, DATA[name], *ends, *gaps])
    total = sum(wins.values())
    head = "**No method with SANE is the best in any cell.** " if not wins["sane"] else ""
    head += (
        f"Of {total} cells (kind of prompt and data set), a method with SANE is best in {wins['sane']}, one with the "
        f"linear code of whole networks in {wins['linear']}, and one without a code (children as they are, their "
        f"averages, fine-tuning, kernel ridge to weights) in {wins['other']}. Of each kind, the "
        "variant with the best accuracy on validation combinations is compared; differences are paired, with 95% "
        "intervals."
    )
    titles = [f"{left} less {right}" for left, right in COMPARED]
    return "\n\n".join([head, markdown_table(["prompt", "data", "best", "second", *titles], rows), goal(records)])


def gap(results: Mapping[str, Any], prompt: str, left: str, right: str) -> str:
    """The paired difference of two kinds of method; empty where one does not exist."""
    names = [best_of(results, prompt, KINDS[kind]) for kind in (left, right)]
    found = [accuracies(results, prompt, name) for name in names if name is not None]
    return signed(difference(*found)) if len(found) == 2 else ""


def goal(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the goal of one image per class was reached."""
    reached = []
    for record in records.values():
        results = record["results"]
        sane = best_of(results, "shots_1", SANE)
        assert sane is not None
        own = accuracies(results, "shots_1", sane)
        rivals = [best_of(results, "shots_1", KINDS[rival]) for rival in ("linear code", "nearest child")]
        above = all(difference(own, accuracies(results, "shots_1", rival or ""))[1] > 0 for rival in rivals)
        gain = difference(own, accuracies(results, "shots_1", "finetuned"))[0]
        reached.append(above and gain >= WANTED_GAIN)
    return (
        "The goal was that, with one image per class, SANE is ten points above tuned fine-tuning, and above the "
        f"linear code and the nearest child by a paired interval: reached on {sum(reached)} of {len(reached)} data "
        "sets."
    )


def structure_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Variance of held-out networks in principal components of training networks."""
    rows = []
    for name, record in records.items():
        found, arguments = record["results"]["structure"], record["arguments"]
        each = {
            f"independent seeds ({arguments['seeds']} runs)": [found["seeds"]],
            "children of one ancestor, as many": found["children_few"],
            "children of one ancestor, all": found["children"],
            "children of all ancestors": [found["all_children"]],
        }
        for title, parts in each.items():
            cells = []
            for number in (4, 16, 64, -1):
                kept = [_at(part, number) for part in parts]
                there = [pair for pair in kept if pair is not None]
                explained, chance = (mean([pair[side] for pair in there]) if there else None for side in (0, 1))
                cells.append("" if explained is None else f"{explained:.3f} ({chance:.3f})")
            rows.append([DATA[name], title, *cells])
    header = ["data", "networks", "4 directions", "16", "64", "all"]
    return markdown_table(header, rows, numbers=True)


def _at(part: Mapping[str, Any], number: int) -> tuple[float, float] | None:
    if number > 0 and number not in part["directions"]:
        return None
    index = -1 if number < 0 else part["directions"].index(number)
    return part["explained"][index], part["chance"][index]


def rates_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy and agreement after each code, by bits per weight."""
    rows = []
    for name, record in records.items():
        results = record["results"]
        original = mean(results["references"]["child"])
        points = [(key, point) for key, found in results["rates"].items() for point in found["points"]]
        for key, point in sorted(points, key=lambda pair: pair[1]["bits_per_weight"]):
            code = next((title for word, title in CODES.items() if key.startswith(word)), "rounded weights")
            rows.append(
                [
                    DATA[name],
                    f"{code}, {point['bits_per_latent']} bits",
                    f"{point['latents_per_weight']:.4f}",
                    f"{point['bits_per_weight']:.3f}",
                    f"{mean(point['accuracy']):.3f}",
                    f"{mean(point['accuracy']) / original:.3f}",
                    f"{mean(point['agreement']):.3f}",
                ]
            )
        rows.append([DATA[name], "ancestor", "0", "0", *_kept(mean(results["references"]["ancestor"]), original), ""])
        rows.append([DATA[name], "children themselves", "1", "32", *_kept(original, original), "1.000"])
    header = ["data", "code", "latents per weight", "bits per weight", "accuracy", "accuracy kept", "agreement"]
    return markdown_table(header, rows, numbers=True)


def _kept(accuracy: float, original: float) -> tuple[str, str]:
    return f"{accuracy:.3f}", f"{accuracy / original:.3f}"


def prompts_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy of each method for each kind of prompt, and the paired difference."""
    parts = []
    for name, record in records.items():
        results, networks, rows = record["results"], record["data"]["networks"], []
        for method, title in METHODS.items():
            cells = []
            for prompt in PROMPTS:
                own = accuracies(results, prompt, method)
                base = base_of(prompt)
                gap = "" if method == base or not own else difference(own, accuracies(results, prompt, base))
                cells.append("" if not own else f"{mean(own):.3f}" + (f" ({signed(gap)})" if gap else ""))
            rows.append([title, *cells])
        parts += [
            f"### {DATA[name]}",
            f"{networks['train']} training children, {networks['judged_test']} test networks of "
            f"{len(set(results['combinations']))} held-out combinations.",
            markdown_table(["network", *PROMPTS.values()], rows, numbers=True),
        ]
    return "\n\n".join(parts)


def chosen_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings that were chosen on validation combinations."""
    rows = []
    for name, record in records.items():
        for prompt, shown in PROMPTS.items():
            for method, choice in record["results"]["prompts"][prompt]["chosen"].items():
                settings = ", ".join(f"{key} {_plain(value)}" for key, value in choice["settings"].items())
                rows.append([DATA[name], shown, METHODS[method], settings, f"{choice['accuracy']:.3f}"])
    return markdown_table(["data", "prompt", "network", "settings", "validation accuracy"], rows)


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, list) else f"{value}"


def source_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the numbers come from."""
    lines = [f"- {DATA[name]}: {source_line(record)}" for name, record in records.items()]
    return "\n".join(lines)


REPTILE = {
    "reptile": "fine-tuning of the start that Reptile learned, mean of three seeds",
    "finetuned": "fine-tuning of the ancestor",
    "search_weights": "fine-tuning from the best start",
    "search_whole64": "search in 64 principal directions",
    "nearest": "nearest child",
    "average_nearest": "average of the nearest children",
    "scratch": "training from scratch",
}


def reptile_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy of Reptile and its rivals on the same images, and what Reptile has less or more."""
    parts = []
    for name, record in records.items():
        rows, seeds = [], []
        for method, title in REPTILE.items():
            row = [title]
            for prompt in ("shots_1", "shots_5"):
                found = _reptile(record["results"], prompt)
                own = found[method]
                less = "" if method == "reptile" else signed(difference(found["reptile"], own))
                row += [f"{mean(own):.3f}", less]
            rows.append(row)
        for prompt in ("shots_1", "shots_5"):
            values = record["results"]["prompts"][prompt]["accuracy"]
            each = [mean([mean(draw) for draw in draws]) for key, draws in values.items() if key.startswith("reptile")]
            seeds.append(f"{PROMPTS[prompt]}: {', '.join(f'{value:.3f}' for value in each)}")
        header = [DATA[name]]
        for prompt in ("shots_1", "shots_5"):
            header += [PROMPTS[prompt], "Reptile less this"]
        combinations = len(set(record["results"]["combinations"]))
        minutes = f"{record['seconds'] / 60:.0f} minutes"
        parts += [
            markdown_table(header, rows),
            f"Accuracy on {combinations} held-out combinations, three draws of images, and paired differences with "
            f"95% bootstrap intervals. Seeds of Reptile: {'; '.join(seeds)}. `{record['command']}`, "
            f"{record['hardware']['cpu']}, one thread, {minutes} next to other jobs, commit {record['commit'][:12]} "
            f"([record](../../runs/paper/reptile/{name}_0.json)).",
        ]
    return "\n\n".join(parts)


def _reptile(results: Mapping[str, Any], prompt: str) -> dict[str, list[float]]:
    """Mean accuracy of each combination by method; Reptile over its seeds."""
    values, found = results["prompts"][prompt]["accuracy"], {}
    for method in REPTILE:
        names = [key for key in values if key.startswith("reptile")] if method == "reptile" else [method]
        draws = [draw for key in names for draw in values[key]]
        by_combination: dict[str, list[float]] = {}
        for draw in draws:
            for combination, value in zip(results["combinations"], draw, strict=True):
                by_combination.setdefault(combination, []).append(value)
        found[method] = [mean(part) for part in by_combination.values()]
    return found


BLOCKS = {
    "verdict": verdict_block,
    "structure": structure_block,
    "rates": rates_block,
    "prompts": prompts_block,
    "chosen": chosen_block,
    "source": source_block,
}


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    records = load_records(root / "runs" / "paper" / "children")
    reptile = load_records(root / "runs" / "paper" / "reptile")
    found = {name: block(records) if records else "" for name, block in BLOCKS.items()}
    return {**found, "reptile": reptile_block(reptile) if reptile else ""}
