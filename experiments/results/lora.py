"""docs/how-to/lora.md: an adapter of SANE beside full fine-tuning, and sampled networks with adapters beside other ways to train."""

import json
from pathlib import Path
from typing import Any

from hf_sane.hub.tables import markdown_table

PAGE = "docs/how-to/lora.md"
WANTED_GAIN, LARGEST_SHARE = 0.8, 0.05


def adaptation_block(path: Path) -> str:
    """What LoRA on SANE recovers of the gain of full fine-tuning."""
    record = json.loads(path.read_text(encoding="utf-8"))
    results, settings, data = record["results"], record["arguments"], record["data"]
    rows = [
        [method, *(f"{found[key]:.4f}" for key in ("validation_r2", "test_r2", "source_test_r2"))]
        for method, found in results["methods"].items()
    ]
    header = ["", "R2, validation networks", "R2, test networks", "R2, test networks of the old zoo"]
    table = markdown_table(header, rows, numbers=True)
    adapter, networks = results["adapter"], data["networks"]["zoo"]
    share, recovered = adapter["share_of_encoder_and_decoder"], results["gain_recovered"]
    reached = recovered >= WANTED_GAIN and share < LARGEST_SHARE
    by_seed = ", ".join(f"{value:.0%}" for value in results["gain_recovered_by_seed"])
    rates = ", ".join(f"{kind} {rate:g}" for kind, rate in results["learning_rates"].items())
    return f"""{table}

Means over {len(settings["seeds"])} seeds, {settings["steps"]} steps of {settings["batch_size"]} windows each. The old zoo: {data["names"]["source"]}; the new one: {data["names"]["zoo"]}{_recipe(data["new_zoo"])}.
{networks["train"]} training, {networks["validation"]} validation and {networks["test"]} test checkpoints, split by training run. Peak
learning rates ({rates}) and the kind of adapter were chosen on validation networks at the first seed.
The adapter ({adapter["kind"]}, rank {adapter["rank"]}) has {adapter["adapter_parameters"]:,} parameters, {adapter["share"]:.1%} of the model and {share:.1%} of what encodes and decodes; it
recovers **{recovered:.0%}** of what full fine-tuning gains on test networks (by seed: {by_seed}). Wanted: at least {WANTED_GAIN:.0%} with
less than {LARGEST_SHARE:.0%} of the parameters: {"reached" if reached else "**not reached**"}. Record: [{path.name}](../../runs/lora/{path.name})."""


def _recipe(built: dict[str, Any]) -> str:
    """How the new zoo was trained; one that was cut anew does not say."""
    if "epochs" not in built:
        return ""
    optimizers, initializations = " and ".join(built["optimizers"]), " and ".join(built["initializations"])
    return f", trained for {built['epochs']} epochs with {optimizers}, initialised by {initializations}"


def finetuning_block(folder: Path) -> str:
    """Sampled networks with LoRA, fine-tuned whole, and networks from scratch."""
    parts = []
    for path in sorted(folder.glob("finetuning_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        results, data = record["results"], record["data"]
        accuracy, spread, adapter = results["test_accuracy"], results["standard_deviation"], results["adapter"]
        steps = list(next(iter(accuracy.values())))
        rows = [
            [name, *(f"{found[step]:.3f} ± {spread[name][step]:.3f}" for step in steps), results["chosen"][name]]
            for name, found in accuracy.items()
        ]
        table = markdown_table([f"test accuracy on {data['images']}", *steps, "chosen on validation images"], rows)
        parts.append(
            f"""{table}

Mean and standard deviation over {results["runs_of_each_method"]} runs: {results["networks"]} networks, {len(record["arguments"]["seeds"])} seeds (orders of images; from scratch also initialisations). Learning
rates tried: {", ".join(f"{rate:g}" for rate in record["arguments"]["rates"])}. The adapters of these small networks ({adapter["base_parameters"]:,} parameters) hold {adapter["share"]:.0%} as many parameters as the network; what LoRA saves
grows with the width of the layers. Record: [{path.name}](../../runs/lora/{path.name})."""
        )
    return "\n\n".join(parts)


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    records = root / "runs" / "lora"
    return {
        "adapt_blind": adaptation_block(records / "adapt_sane_blind.json"),
        "adapt": adaptation_block(records / "adapt_sane.json"),
        "finetuning": finetuning_block(records),
    }
