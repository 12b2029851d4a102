"""Families with common ancestors: what they share, how few numbers keep them, and networks without training.

    python experiments/paper_children.py --images ../shared/data/images --work ../children \
        --records runs/paper/children
    python experiments/paper_children.py ... --families usps --children 120 --num-seeds 16     # a quick look

For each data set, 5 ancestors and 600 children on composed shifts of 16x16 images, whose combinations are held out
(`hf-sane zoo build --children`). One record each: (a) the linear structure that children share, beside that of
independent seeds; (b) accuracy and agreement after codes of the change since the ancestor, by bits per weight;
(c) networks from a prompt of 20 unlabelled images, or of 1 or 5 labelled images per class, of a held-out combination.
What a method has to choose is chosen on validation combinations; test combinations are measured once, with three draws
of images. A data set takes about 5 minutes of one CPU core; zoos and autoencoders in `--work` are kept.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from autoencoders import RECONSTRUCTION, RECONSTRUCTION_MODEL, train_sane
from children_prompts import (
    Children,
    Code,
    Examples,
    Family,
    Prompting,
    TokenCode,
    Weights,
    WholeCode,
    draw_examples,
    references,
    zoo_of_changes,
)
from families import families_parser, run_families
from paper_rates import GROUPINGS, LATENT_BITS
from paper_zoos import GREY
from rates import RatePoint, latent_groups, rate_points, rounded_weights
from torch import Tensor

from hf_sane.analysis._structure import SharedStructure, shared_structure
from hf_sane.networks._images import load_images
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling import NetworkCodec
from hf_sane.workflows.zoo_structure import zoo_structure
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings

ANCESTORS = 5
NETWORKS: dict[str, Any] = {
    "image_size": 16,
    "train_limit": 1000,
    "validation_limit": 500,
    "test_limit": 500,
    "train_evaluation_limit": 200,
    "architecture": "cnn_digits",
    "architecture_settings": {"conv_channels": [8, 12, 16], "kernel_sizes": [3, 3, 2], "pool_sizes": [2, 2, 1]},
    "learning_rate": [3e-3],
    "weight_decay": [1e-4],
    "max_abs_weight": 10.0,
    "group_size": 100,
    "progress_bar": False,
}
ANCESTOR_EPOCHS, CHILD_EPOCHS, SEED_EPOCHS = 25, 2, 8
SHARES = [0.6, 0.15, 0.25]  # of combinations
TOKEN_LATENTS = (8, 1)  # of a SANE, and of the linear code of tokens
WHOLE_LATENTS = (16, 64)  # principal components of whole networks
SEARCHED = ("sane8", "whole16", "whole64")
WEIGHT_BITS = (1, 2, 3, 4)
DRAWS = 3  # of the images of a prompt
PROMPTS = {"unlabelled": None, "shots_1": 1, "shots_5": 5}  # labelled images per class
TEST_IMAGES = 200  # that a network is judged by
PER_COMBINATION = 2  # networks of each held-out combination
DIRECTIONS = (1, 4, 16, 64)


def build_family(name: str, options: argparse.Namespace) -> Zoo:
    """The ancestors and their children."""
    settings = ZooSettings(
        **{**NETWORKS, "images": str(options.images / GREY[name]), "seed": options.seed},
        name=f"{name}, children",
        num_models=ANCESTORS,
        epochs=ANCESTOR_EPOCHS,
        keep_epochs=[ANCESTOR_EPOCHS],
        children=options.children,
        child_epochs=CHILD_EPOCHS,
        split_shares=SHARES,
    )
    return build_zoo(settings, None, options.work / "zoos", config=f"{name}_children")


def build_seeds(name: str, options: argparse.Namespace) -> Zoo:
    """Independent seeds of the same network."""
    settings = ZooSettings(
        **{**NETWORKS, "images": str(options.images / GREY[name]), "seed": options.seed},
        name=f"{name}, seeds",
        num_models=options.seeds,
        epochs=SEED_EPOCHS,
        keep_epochs=[SEED_EPOCHS],
    )
    return build_zoo(settings, None, options.work / "zoos", config=f"{name}_seeds")


def describe_structure(found: SharedStructure) -> dict[str, Any]:
    """Held-out variance in some numbers of components."""
    kept = [i for i, number in enumerate(found.directions) if number in (*DIRECTIONS, found.directions[-1])]
    values = found.to_dict()
    return {key: [values[key][i] for i in kept] for key in ("directions", "explained", "chance", "gains", "intervals")}


def measure_structure(family: Family, seeds: Zoo) -> dict[str, Any]:
    """Structure of the changes of each ancestor's children, of all children, and of independent seeds."""

    def tensors(*parts: Children, ancestor: int | None = None, limit: int | None = None) -> dict[str, Tensor]:
        chosen = [part.changes if ancestor is None else part.changes[part.ancestor == ancestor] for part in parts]
        return family.layout.tensors(torch.cat(chosen)[:limit])

    train, held_out = family.splits["train"], (family.splits["validation"], family.splits["test"])
    # As many training networks as there are of seeds, and all.
    few, numbers = len(seeds.splits["train"]), range(len(family.ancestors))
    return {
        "seeds": describe_structure(zoo_structure(seeds).structures[""]),
        "children_few": [
            describe_structure(
                shared_structure(tensors(train, ancestor=i, limit=few), tensors(*held_out, ancestor=i))[""]
            )
            for i in numbers
        ],
        "children": [
            describe_structure(shared_structure(tensors(train, ancestor=i), tensors(*held_out, ancestor=i))[""])
            for i in numbers
        ],
        "all_children": describe_structure(shared_structure(tensors(train), tensors(*held_out))[""]),
    }


def train_codes(name: str, zoo: Zoo, family: Family, options: argparse.Namespace) -> dict[int, NetworkCodec]:
    """A SANE of the changes for each number of latents per token."""
    changes, layout = zoo_of_changes(zoo, family), family.layout
    codecs = {}
    for latent_dim in TOKEN_LATENTS:
        folder = options.work / f"{name}_{latent_dim}_{options.seed}"
        settings = {"batch_size": 32, "model": RECONSTRUCTION_MODEL, **RECONSTRUCTION}
        sane = train_sane(changes, layout, latent_dim, folder, options, **settings)
        codecs[latent_dim] = NetworkCodec(sane.model, sane.extractor, layout, family.config)
    return codecs


def measure_code(
    family: Family, code: Code, children: Children, examples: Examples, bits: Sequence[int], groups: Tensor
) -> list[RatePoint]:
    """Accuracy and agreement after a code of few bits; like `measure_rates`, with images for each network."""
    training, latents = (code.encode(part.changes, part.ancestor) for part in (family.splits["train"], children))

    @torch.no_grad()
    def predict(latents: Tensor) -> Tensor:
        return examples.predictions(family.networks(children.ancestor, code.decode(latents, children.ancestor)))

    return rate_points(
        training,
        latents,
        groups,
        predict,
        labels=examples.labels,
        original=examples.predictions(family.networks(children.ancestor, children.changes)),
        num_weights=family.layout.num_weights,
        bits=bits,
    )


def measure_rates(
    family: Family, codecs: Mapping[int, NetworkCodec], judged: Mapping[str, tuple[Children, Examples]]
) -> tuple[dict[str, Any], dict[str, Code]]:
    """Every code at its rates on test children, and the codes by name."""
    train, groups, results, codes = family.splits["train"], latent_groups(family.layout), {}, {}
    for latent_dim, codec in codecs.items():
        codes[f"sane{latent_dim}"] = TokenCode(codec)
        linear = {grouping: TokenCode(codec.linear(train.changes, grouping)) for grouping in GROUPINGS}
        scores = {
            grouping: sum(measure_code(family, code, *judged["validation"], [8], groups)[0].accuracy)
            for grouping, code in linear.items()
        }
        chosen = max(scores, key=lambda grouping: scores[grouping])
        results[f"linear{latent_dim}"] = {"grouping": chosen}
        codes[f"linear{latent_dim}"] = linear[chosen]
    for size in WHOLE_LATENTS:
        codes[f"whole{size}"] = WholeCode.fit(train, len(family.ancestors), size)
    rounded = TokenCode(rounded_weights(next(iter(codecs.values()))))
    for name, code in {**codes, "rounded": rounded}.items():
        bits = WEIGHT_BITS if name == "rounded" else LATENT_BITS
        own = torch.zeros(1, dtype=torch.long) if name.startswith("whole") else groups
        points = measure_code(family, code, *judged["test"], bits, own)
        results.setdefault(name, {})["points"] = [point.to_dict() for point in points]
        accuracy = sum(points[-1].accuracy) / len(points[-1].accuracy)
        print(f"  {name}: {points[-1].bits_per_weight:.3f} bits per weight, accuracy {accuracy:.3f}", flush=True)
    return results, codes


def measure_prompts(
    family: Family, prompting: Prompting, judged: Mapping[str, tuple[Children, Examples]]
) -> dict[str, Any]:
    """The chosen settings, and the accuracy of each method for every draw and test child."""
    chosen = prompting.choose(*judged["validation"])
    children, examples = judged["test"]
    accuracy: dict[str, list[list[float]]] = {}
    for draw in range(DRAWS):
        for name, changes in prompting.apply(children, draw, chosen).items():
            networks = family.networks(children.ancestor, changes)
            accuracy.setdefault(name, []).append(examples.accuracy(networks).tolist())
    for name, found in accuracy.items():
        print(f"  {prompting.per_class} {name}: {torch.tensor(found).mean():.3f}", flush=True)
    return {"chosen": {name: asdict(choice) for name, choice in chosen.items()}, "accuracy": accuracy}


def run_family(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one data set; read from its record if that exists."""
    path = options.records / f"{name}_{options.seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    arguments = {key: getattr(options, key) for key in ("children", "seeds", "epochs", "hidden_size")}
    record = RunRecord.start(seed=options.seed, arguments={"data": name, **arguments})
    zoo, seeds = build_family(name, options), build_seeds(name, options)
    limits = {key: NETWORKS[key] for key in ("image_size", "train_limit", "validation_limit", "test_limit")}
    data, family = load_images(options.images / GREY[name], **limits), Family.open(zoo)
    print(name, {part: len(children) for part, children in family.splits.items()}, flush=True)
    results: dict[str, Any] = {"structure": measure_structure(family, seeds)}
    judged = {}
    for part in ("validation", "test"):
        children = family.splits[part].spread(PER_COMBINATION)
        judged[part] = children, draw_examples(data, "test", children.shifts, count=TEST_IMAGES, seed=2)
    codecs = train_codes(name, zoo, family, options)
    results["rates"], codes = measure_rates(family, codecs, judged)
    children, examples = judged["test"]
    results["references"] = {
        key: examples.accuracy(family.networks(children.ancestor, changes)).tolist()
        for key, changes in references(family, children).items()
    }
    print(f"  { ({key: sum(found) / len(found) for key, found in results['references'].items()}) }", flush=True)
    searched = {"weights": Weights(), **{key: codes[key] for key in SEARCHED}}
    results["prompts"] = {
        key: measure_prompts(family, Prompting(family, data, searched, per_class, options.seed), judged)
        for key, per_class in PROMPTS.items()
    }
    results["combinations"] = [shift.combination for shift in children.shifts]
    facts = {part: len(found) for part, found in family.splits.items()}
    facts |= {"judged_validation": len(judged["validation"][0]), "judged_test": len(children)}
    facts |= {"weights": family.layout.num_weights, "tokens": family.layout.num_tokens}
    record.finish(results, data={"images": data.describe(), "networks": facts}).save(path)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, then one data set after the other."""
    parser = families_parser(__doc__, former={"--seeds": "--num-seeds"})
    parser.add_argument("--num-seeds", dest="seeds", type=int, default=32, help="independent networks, for comparison")
    run_families(run_family, parser, argv)


if __name__ == "__main__":
    run_script(main, name="paper_children.py")
