"""A few numbers per network: latents of whole networks, linear and learned, in families with common ancestors.

    python experiments/paper_network_latents.py --images ../shared/data/images --work ../children \
        --records runs/paper/network_latents --families usps

The networks are those of paper_children.py: children of five ancestors, on images whose combinations of shifts are
held out. Each is encoded as 4, 16 or 64 numbers: by principal components of all networks, by those of the children of
its ancestor, and by SANE with `num_latents`. For 16 numbers, two variants of SANE are also trained: on predictions,
and with cross-attention. Epochs and dropout are chosen on validation combinations; test combinations are measured
once. If the zoo is already built, a data set takes about 10 minutes of one CPU core, and 10 more with variants.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from autoencoders import RECONSTRUCTION, train_sane
from children_prompts import Children, Examples, Family, WholeCode, draw_examples
from families import families_parser, run_families
from paper_children import NETWORKS, PER_COMBINATION, TEST_IMAGES, build_family
from paper_zoos import GREY
from torch import Tensor

from hf_sane.networks._images import load_images
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling import NetworkCodec
from hf_sane.zoo._dataset import Zoo

SIZES = (4, 16, 64)
VARIANT_SIZE = 16  # numbers of the variants
WIDTH, COMPONENTS = 256, 300
BUDGETS = ((40, 0.0), (100, 0.2))  # epochs and dropout
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
READERS: dict[str, dict[str, Any]] = {
    "components": {"num_latents": 1, "hidden_size": WIDTH},
    "attention": {"num_latents": 4, "hidden_size": 64, "num_attention_heads": 4, "initializer_range": 0.125},
}
BEHAVIOR = 0.5


@dataclass(frozen=True)
class Networks:
    """Children of one split, to be encoded and judged.

    Attributes:
        tokens: `[M, N, D]` raw tokens.
        children: Their ancestors and shifts.
        examples: Images of each network.
    """

    tokens: Tensor
    children: Children
    examples: Examples


def measure(family: Family, networks: Networks, decoded: Tensor) -> dict[str, Any]:
    """Distances and predictions of decoded networks `[M, N, D]`, in raw tokens."""
    train, ancestor = family.splits["train"], networks.children.ancestor
    means = torch.stack([train.changes[train.ancestor == i].mean(dim=0) for i in range(len(family.ancestors))])
    spread = networks.children.changes - means[ancestor]
    changes = decoded - family.ancestors[ancestor]
    made = family.networks(ancestor, changes)
    original = networks.examples.predictions(family.networks(ancestor, networks.children.changes))
    predicted = networks.examples.predictions(made)
    return {
        "r2": 1.0 - ((decoded - networks.tokens).square().sum() / spread.square().sum()).item(),
        "accuracy": (predicted == networks.examples.labels).float().mean(dim=1).tolist(),
        "agreement": (predicted == original).float().mean(dim=1).tolist(),
    }


def train(
    zoo: Zoo, name: str, size: int, reader: str, budget: tuple[int, float], behavior: float, options: Any
) -> NetworkCodec:
    """A SANE with `size` numbers per network; a finished one is reused."""
    epochs, dropout = budget
    settings = dict(READERS[reader])
    model = {
        **settings,
        "latent_dim": size // settings["num_latents"],
        "latent_reader": reader,
        "num_components": COMPONENTS,
        "hidden_dropout": dropout,
        "contrast_weight": 0.0,
    }
    kind = f"{reader}_behavior" if behavior else reader
    folder = options.work / f"{name}_{kind}_{size}_{epochs}_{options.seed}"
    training: dict[str, Any] = {**RECONSTRUCTION, "views": ["aligned"], "batch_size": 32, "model": model}
    training |= {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    if behavior:
        training |= {"behavior_weight": behavior, "behavior_data": str(options.images / GREY[name])}
    layout, config = zoo.splits["train"].layout_and_config()
    own = argparse.Namespace(**{**vars(options), "epochs": epochs})
    sane = train_sane(zoo, layout, size, folder, own, **training)
    return NetworkCodec(sane.model, sane.extractor, layout, config)


def encoded(codec: NetworkCodec, networks: Networks) -> Tensor:
    """Raw tokens after the code."""
    with torch.no_grad():
        return codec.decode_tokens(codec.encode(networks.tokens))


def run_family(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All codes of one data set; read from its record if that exists."""
    path = options.records / f"{name}_{options.seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    arguments = {key: getattr(options, key) for key in ("children", "sizes", "variants")}
    record = RunRecord.start(seed=options.seed, arguments={"data": name, **arguments})
    zoo = build_family(name, argparse.Namespace(**{**vars(options), "seed": 0}))
    limits = {key: NETWORKS[key] for key in ("image_size", "train_limit", "validation_limit", "test_limit")}
    data, family = load_images(options.images / GREY[name], **limits), Family.open(zoo)
    judged = {}
    for part in ("validation", "test"):
        children = family.splits[part].spread(PER_COMBINATION)
        examples = draw_examples(data, "test", children.shifts, count=TEST_IMAGES, seed=2)
        judged[part] = Networks(family.ancestors[children.ancestor] + children.changes, children, examples)
    results: dict[str, Any] = {"references": references(family, judged["test"]), "codes": {}, "chosen": {}}
    for size in options.sizes:
        results["codes"][str(size)], results["chosen"][str(size)] = run_size(zoo, name, size, family, judged, options)
        found = results["codes"][str(size)]
        print(
            name,
            size,
            {key: f"{code['r2']:.3f} {_mean(code['accuracy']):.3f}" for key, code in found.items()},
            flush=True,
        )
    facts = {part: len(found) for part, found in family.splits.items()}
    facts |= {f"judged_{part}": len(found.tokens) for part, found in judged.items()}
    facts |= {"weights": family.layout.num_weights, "tokens": family.layout.num_tokens}
    record.finish(results, data={"images": data.describe(), "networks": facts}).save(path)
    return results


def references(family: Family, test: Networks) -> dict[str, Any]:
    """The networks themselves, their ancestors, and the nearest training children, which need no numbers."""
    train, ancestor = family.splits["train"], test.children.ancestor
    flat = (family.ancestors[train.ancestor] + train.changes).flatten(1)
    nearest = torch.cdist(test.tokens.flatten(1), flat).argmin(dim=1)
    return {
        "original": measure(family, test, test.tokens),
        "ancestor": measure(family, test, family.ancestors[ancestor]),
        "nearest": measure(family, test, flat[nearest].view_as(test.tokens)),
    }


def run_size(
    zoo: Zoo, name: str, size: int, family: Family, judged: Mapping[str, Networks], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All codes with one number of latents, and the budgets that were chosen."""
    test, found, chosen = judged["test"], {}, {}
    kinds = {"sane": ("components", 0.0)}
    if options.variants and size == VARIANT_SIZE:
        kinds |= {"sane_behavior": ("components", BEHAVIOR), "sane_attention": ("attention", 0.0)}
    for kind, (reader, behavior) in kinds.items():
        codecs = {budget: train(zoo, name, size, reader, budget, behavior, options) for budget in BUDGETS}
        scores = {}
        for budget, codec in codecs.items():
            scored = measure(family, judged["validation"], encoded(codec, judged["validation"]))
            scores[budget] = _mean(scored["agreement"]) if behavior else scored["r2"]
        best = max(scores, key=lambda budget: scores[budget])
        chosen[kind] = {"epochs": best[0], "dropout": best[1], "score": scores[best]}
        found[kind] = measure(family, test, encoded(codecs[best], test))
    train_part = family.splits["train"]
    linear = codecs[best].linear(family.ancestors[train_part.ancestor] + train_part.changes)
    found["linear"] = measure(family, test, encoded(linear, test))
    own = WholeCode.fit(train_part, len(family.ancestors), size)
    ancestor = test.children.ancestor
    changes = own.decode(own.encode(test.children.changes, ancestor), ancestor)
    found["linear_ancestor"] = measure(family, test, family.ancestors[ancestor] + changes)
    return found, chosen


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, then one data set after the other."""
    parser = families_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers per network")
    parser.add_argument("--variants", action=argparse.BooleanOptionalAction, default=True, help="also train variants")
    run_families(run_family, parser, argv)


if __name__ == "__main__":
    run_script(main, name="paper_network_latents.py")
