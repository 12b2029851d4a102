"""docs/results/lora.md: adapters of SANE and of sampled networks, compared with full fine-tuning."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/lora.md"
WANTED_GAIN, LARGEST_SHARE = 0.8, 0.05


def adaptation_block(path: Path) -> str:
    """Share of the gain of full fine-tuning that LoRA on SANE recovers."""
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
    return (
        f"{table}\n"
        "\n"
        f"Means over {len(settings['seeds'])} seeds, {settings['steps']} steps of {settings['batch_size']} windows "
        f"each. Old zoo: {data['names']['source']}; new zoo: {data['names']['zoo']}{_recipe(data['new_zoo'])}, with "
        f"{networks['train']} training, {networks['validation']} validation and {networks['test']} test "
        f"checkpoints, split by training run. Peak learning rates ({rates}) and the kind of adapter were chosen on "
        "validation networks at the first seed.\n"
        "\n"
        f"The adapter ({adapter['kind']}, rank {adapter['rank']}) has {adapter['adapter_parameters']:,} parameters: "
        f"{adapter['share']:.1%} of the model, {share:.1%} of encoder and decoder. It recovers **{recovered:.0%}** "
        f"of the gain of full fine-tuning on test networks (by seed: {by_seed}). The target of at least "
        f"{WANTED_GAIN:.0%} with less than {LARGEST_SHARE:.0%} of the parameters is "
        f"{'reached' if reached else '**not reached**'}. Record: [{path.name}](../../runs/lora/{path.name})."
    )


def _recipe(built: dict[str, Any]) -> str:
    """Recipe of the new zoo, if its record has one."""
    if "epochs" not in built:
        return ""
    optimizers, initializations = " and ".join(built["optimizers"]), " and ".join(built["initializations"])
    return f", trained for {built['epochs']} epochs with {optimizers}, initialised by {initializations}"


def finetuning_block(folder: Path) -> str:
    """Sampled networks with LoRA and with full fine-tuning, and networks trained from scratch."""
    parts = []
    for path in sorted(folder.glob("finetuning_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        results, data, settings = record["results"], record["data"], record["arguments"]
        accuracy, spread, adapter = results["test_accuracy"], results["standard_deviation"], results["adapter"]
        steps = list(next(iter(accuracy.values())))
        rows = [
            [name, *(f"{found[step]:.3f} ± {spread[name][step]:.3f}" for step in steps), results["chosen"][name]]
            for name, found in accuracy.items()
        ]
        table = markdown_table([f"test accuracy on {data['images']}", *steps, "chosen on validation images"], rows)
        parts.append(
            f"{table}\n"
            "\n"
            f"Mean ± standard deviation over {results['runs_of_each_method']} runs: {results['networks']} networks, "
            f"{len(settings['seeds'])} seeds (order of the images; from scratch also the initialisation). Learning "
            f"rates tried: {', '.join(f'{rate:g}' for rate in settings['rates'])}. The adapters of these small "
            f"networks ({adapter['base_parameters']:,} parameters) have {adapter['share']:.0%} as many parameters "
            f"as the network; wider layers save more. Record: [{path.name}](../../runs/lora/{path.name})."
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
