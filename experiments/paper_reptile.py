"""Reptile as a rival of children: a start that is meta-learned over the shifts of an ancestor's children.

    python experiments/paper_reptile.py --images ../shared/data/images --work ../children \
        --records runs/paper/reptile --families usps

For each ancestor, Reptile (Nichol et al. 2018, arXiv:1803.02999) learns a start from the shifts of the training
children, with as many training images per class as a prompt has. It is fine-tuned with the images of the prompt like
the other starts of `paper_children.py`: rates and steps are chosen on validation combinations, test combinations are
measured with three draws of images. The zoo of `paper_children.py` in `--work` is used. Some minutes per data set on
one CPU core.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from children_prompts import (
    STEPS,
    WEIGHT_RATES,
    Children,
    Choice,
    Examples,
    Family,
    Prompting,
    Weights,
    WholeCode,
    best,
    draw_examples,
    search,
)
from families import families_parser, run_families
from paper_children import DRAWS, NETWORKS, PER_COMBINATION, PROMPTS, TEST_IMAGES, build_family
from paper_zoos import GREY
from torch import Tensor

from hf_sane.networks._images import ImageData, load_images
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord

ROUNDS = 40  # of meta-learning
TASKS = 40  # training children per round
INNER_STEPS = 10
INNER_RATES = (3e-3, 1e-2)
OUTER_RATE = 1.0  # of the first round; it falls to zero
SEEDS = 3  # of meta-learning
DIRECTIONS = 64


def learn_start(family: Family, data: ImageData, per_class: int, *, rate: float, seed: int) -> Tensor:
    """Meta-learn a start for each ancestor, as changes `[A, N, D]`.

    In every round, training children are drawn. From the start of its ancestor, the weights of each are fitted to
    images with its shift by a few steps of Adam, and the start moves towards their mean.

    Args:
        family: Ancestors and children, of which only the shifts are used.
        data: Images; those of training.
        per_class: Labelled images of each class.
        rate: Learning rate of the steps.
        seed: Random seed.
    """
    children, generator = family.splits["train"], torch.Generator().manual_seed(seed)
    start = torch.zeros_like(family.ancestors)
    for number in range(ROUNDS):
        tasks = children.select(torch.randperm(len(children), generator=generator)[:TASKS])
        examples = draw_examples(data, "train", tasks.shifts, per_class=per_class, seed=1000 * seed + number)
        own = start[tasks.ancestor]
        (fitted,) = search(
            family, Weights(), tasks.ancestor, own, examples, rate=rate, scale=1.0, steps=(INNER_STEPS,)
        )
        moves = torch.zeros_like(start).index_add_(0, tasks.ancestor, fitted - own)
        counts = tasks.ancestor.bincount(minlength=len(start)).clamp_min(1)
        start = start + OUTER_RATE * (1 - number / ROUNDS) * moves / counts[:, None, None]
    return start


def choose_start(
    family: Family, starts: Mapping[float, Tensor], prompt: Examples, children: Children, examples: Examples
) -> Choice:
    """Inner rate, and rate and steps of fine-tuning, by accuracy on validation children; zero steps are allowed."""
    choices = []
    for inner, start in starts.items():
        own = start[children.ancestor]
        choices.append(Choice({"inner_rate": inner, "steps": 0, "rate": 0.0}, judged(family, children, own, examples)))
        for rate in WEIGHT_RATES:
            path = search(family, Weights(), children.ancestor, own, prompt, rate=rate, scale=1.0)
            for steps, changes in zip(STEPS, path, strict=True):
                settings = {"inner_rate": inner, "steps": steps, "rate": rate}
                choices.append(Choice(settings, judged(family, children, changes, examples)))
    return best(choices)


def judged(family: Family, children: Children, changes: Tensor, examples: Examples) -> float:
    """Mean accuracy."""
    return examples.accuracy(family.networks(children.ancestor, changes)).mean().item()


def adapt(family: Family, children: Children, prompt: Examples, start: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Changes after fine-tuning of a start."""
    own = start[children.ancestor]
    if not settings["steps"]:
        return own
    found = search(
        family,
        Weights(),
        children.ancestor,
        own,
        prompt,
        rate=settings["rate"],
        scale=1.0,
        steps=(settings["steps"],),
    )
    return found[0]


def measure(
    family: Family, data: ImageData, per_class: int, parts: Mapping[str, tuple[Children, Examples]], seed: int
) -> dict[str, Any]:
    """Choices, and accuracies of test children by method: those of `paper_children.py` without SANE, and Reptile."""
    codes = {"weights": Weights(), "whole64": WholeCode.fit(family.splits["train"], len(family.ancestors), DIRECTIONS)}
    prompting = Prompting(family, data, codes, per_class, seed)
    chosen = prompting.choose(*parts["validation"])
    validation, validation_examples = parts["validation"]
    reptiles = []
    for number in range(SEEDS):
        starts = {rate: learn_start(family, data, per_class, rate=rate, seed=number) for rate in INNER_RATES}
        prompt = prompting.draw(validation, seed=100)
        choice = choose_start(family, starts, prompt, validation, validation_examples)
        reptiles.append((starts[choice.settings["inner_rate"]], choice))
    children, examples = parts["test"]
    accuracy: dict[str, list[list[float]]] = {}
    for draw in range(DRAWS):
        found = prompting.apply(children, draw, chosen)
        for number, (start, choice) in enumerate(reptiles):
            found[f"reptile_{number}"] = adapt(
                family, children, prompting.draw(children, draw), start, choice.settings
            )
        for name, changes in found.items():
            networks = family.networks(children.ancestor, changes)
            accuracy.setdefault(name, []).append(examples.accuracy(networks).tolist())
    for name, values in accuracy.items():
        print(f"  {per_class} {name}: {torch.tensor(values).mean():.3f}", flush=True)
    choices = {name: asdict(choice) for name, choice in chosen.items()}
    choices |= {f"reptile_{number}": asdict(choice) for number, (_, choice) in enumerate(reptiles)}
    return {"chosen": choices, "accuracy": accuracy}


def run_family(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One data set; read from its record if that exists."""
    path = options.records / f"{name}_{options.seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    settings = {"rounds": ROUNDS, "tasks": TASKS, "inner_steps": INNER_STEPS, "outer_rate": OUTER_RATE}
    record = RunRecord.start(seed=options.seed, arguments={"data": name, "children": options.children, **settings})
    family = Family.open(build_family(name, options))
    limits = {key: NETWORKS[key] for key in ("image_size", "train_limit", "validation_limit", "test_limit")}
    data = load_images(options.images / GREY[name], **limits)
    parts = {}
    for part in ("validation", "test"):
        children = family.splits[part].spread(PER_COMBINATION)
        parts[part] = children, draw_examples(data, "test", children.shifts, count=TEST_IMAGES, seed=2)
    prompts = {key: per_class for key, per_class in PROMPTS.items() if per_class is not None}
    results = {key: measure(family, data, per_class, parts, options.seed) for key, per_class in prompts.items()}
    combinations = [shift.combination for shift in parts["test"][0].shifts]
    facts = {part: len(found) for part, found in family.splits.items()} | {"judged_test": len(combinations)}
    record.finish(
        {"prompts": results, "combinations": combinations}, data={"images": data.describe(), "networks": facts}
    ).save(path)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, then one data set after the other."""
    run_families(run_family, families_parser(__doc__), argv)


if __name__ == "__main__":
    run_script(main, name="paper_reptile.py")
