"""Predict algorithm, environment, advisory and tau of networks that are not image classifiers from their weights.

There are two populations: policies of reinforcement learning (files
`<algorithm>__<environment>.safetensors`) and the networks of ACAS Xu (files `*_<advisory>_<tau>_*.safetensors`), read
from local folders. Every network is predicted by ridge probes fitted on others: its whole group (itself, its
environment, its shape, its tau, its advisory) is left out, and penalty and pooling are chosen without it, too. A SANE
is pre-trained without labels on all folds but one, and embeds the networks of the remaining fold; all policies of an
environment are in the same fold. It is compared with the shape of the policy alone, s(W), tokens pooled without an
autoencoder, W if all networks have the same shape, the most frequent label, and permuted labels.

    python benchmarks/beyond_vision.py --policies DIR --acasxu DIR --output FILE

To run it in pieces, use `--parts baselines` and `--parts sane --seeds 1`; each writes its own record.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import finish, new_parser, start
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.core._normalization import layer_key
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._baselines import flattened_weights, layer_statistics
from hf_sane.probing._classification import LeftOutLabels, LeftOutNumbers, Views, classify_left_out, regress_left_out
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._poolings import pool_latents
from hf_sane.records._failures import run_script
from hf_sane.symmetry._permutation import Dimension, PermutationSpec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import group_by_layout
from hf_sane.training._preparation import fit_extractor
from hf_sane.training._pretraining import pretrain
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._alignment import align_zoo, aligned_tokens
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo.importing._importing import import_zoo
from hf_sane.zoo.importing._settings import ImportSettings

POOLINGS: tuple[str, ...] = ("mean", "layer_mean", "layer_mean_std", "layer_moments", "layer_covariance")
CLASSIC, BOX2D = ("Acrobot", "CartPole", "MountainCar", "Pendulum"), ("BipedalWalker", "LunarLander")
ACTOR_CRITICS = ("a2c", "ppo", "trpo")
HALO = 8
Features = dict[str, Tensor]


@dataclass(frozen=True)
class Population:
    """Networks with labels, and their groups for cross-validation.

    Attributes:
        name: Name in the record.
        networks: All networks, aligned within each shape.
        labels: One label per network, by kind of label.
        fold_groups: Groups of networks that stay in one fold of pre-training.
        window: Tokens per window.
    """

    name: str
    networks: ZooSplit
    labels: dict[str, list[str]]
    fold_groups: list[str]
    window: int

    @property
    def parts(self) -> list[tuple[Layout, list[int]]]:
        """Networks by shape."""
        return group_by_layout(self.networks, range(len(self.networks)))


@dataclass(frozen=True)
class Task:
    """A prediction task.

    Attributes:
        label: Key of the predicted label in `Population.labels`.
        left_out: Key of the labels whose networks are left out together; `None` for each network by itself.
        rows: Networks of the task.
        units: Key of the labels whose networks keep a common label when labels are permuted.
        strata: Key of the labels within which labels are permuted.
        number: Whether the label is a number, for regression.
    """

    label: str
    left_out: str | None
    rows: list[int]
    units: str | None = None
    strata: str | None = None
    number: bool = False
    results: dict[str, Any] = field(default_factory=dict)


def chains(names: Sequence[str]) -> list[list[str]]:
    """Sequences of consecutive layers: the actor's and the critic's; for ACAS Xu, a single one."""
    actor = sorted(n for n in names if "policy_net" in n) + sorted(n for n in names if n.startswith("action_net"))
    critic = sorted(n for n in names if n.startswith("mlp_extractor.value_net")) + [
        n for n in names if n == "value_net"
    ]
    return [chain for chain in (actor, critic, sorted(n for n in names if n.startswith("layers."))) if chain]


def symmetries(layout: Layout) -> PermutationSpec:
    """Hidden neurons permute freely; per-neuron standard deviations (gSDE) move with the actor's last layer."""
    layers = {layer.name: layer for layer in layout.layers}
    axes: dict[str, list[Dimension]] = {t.name: [None] * len(t.shape) for la in layout.layers for t in la.tensors}
    sizes = {}
    for number, chain in enumerate(chains(list(layers))):
        for first, second in pairwise(chain):
            sizes[first] = layers[first].channels
            for tensor in layers[first].tensors:
                axes[tensor.name][0] = first
            axes[layers[second].weight.name][1] = first
        if number == 0 and len(chain) > 1 and len(axes.get("log_std", ())) == 2:
            axes["log_std"][0] = chain[-2]
    return PermutationSpec({name: tuple(axes[name]) for name in layout.tensor_names}, sizes)


def read_population(folder: str, work: Path, token_dim: int) -> ZooSplit:
    """All networks in a folder as one split; networks of one shape are aligned to the first of them."""
    arguments = ImportSettings(folder=folder, token_dim=token_dim, split_shares=[1, 0, 0])
    result = import_zoo(arguments, work)
    if lost := [entry.run_id for entry in result.entries if entry.status != "taken"]:
        raise ValueError(f"expected to read every network below {folder}, could not take {lost}")
    specs = {key: symmetries(layout) for key, layout in result.zoo.facts.parsed_layouts.items()}
    return align_zoo(result.zoo, specs=specs).splits["train"]


def family(environment: str) -> str:
    """Suite of an environment."""
    if environment.startswith(CLASSIC):
        return "classic control"
    if environment.startswith(BOX2D):
        return "Box2D"
    return "PyBullet" if "BulletEnv" in environment else "MuJoCo"


def policies(folder: str, work: Path, window: int) -> tuple[Population, dict[str, Task]]:
    """The policies and their tasks."""
    networks = read_population(folder, work, 65)
    pairs = [name.removesuffix(".safetensors").split("__") for name in networks.run_ids]
    algorithms, environments = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    labels = {
        "algorithm": algorithms,
        "environment": environments,
        "family": [family(name) for name in environments],
        "shape": networks.column("layout").tolist(),
    }
    every = list(range(len(networks)))
    critics = [i for i in every if algorithms[i] in ACTOR_CRITICS]
    variety = {shape: {algorithms[i] for i in critics if labels["shape"][i] == shape} for shape in labels["shape"]}
    twins = [i for i in critics if len(variety[labels["shape"][i]]) > 1]
    tasks = {
        "algorithm": Task("algorithm", None, every, strata="environment"),
        "algorithm_actor_critic": Task("algorithm", None, critics, strata="environment"),
        "algorithm_same_shape": Task("algorithm", "shape", twins, strata="shape"),
        "family": Task("family", None, every, units="environment"),
        "family_new_environment": Task("family", "environment", every, units="environment"),
    }
    return Population("policies", networks, labels, environments, window), tasks


def acas_xu(folder: str, work: Path, window: int) -> tuple[Population, dict[str, Task]]:
    """The networks of ACAS Xu and their tasks."""
    networks = read_population(folder, work, 51)
    found = [re.search(r"_(\d+)_(\d+)_", name) for name in networks.run_ids]
    labels = {
        "advisory": [match[1] for match in found if match],
        "tau": [match[2] for match in found if match],
    }
    every = list(range(len(networks)))
    tasks = {
        "advisory": Task("advisory", None, every, strata="tau"),
        "advisory_new_tau": Task("advisory", "tau", every, strata="tau"),
        "tau": Task("tau", None, every, strata="advisory"),
        "tau_new_advisory": Task("tau", "advisory", every, strata="advisory"),
        "tau_number": Task("tau", None, every, strata="advisory", number=True),
        "tau_number_new_advisory": Task("tau", "advisory", every, strata="advisory", number=True),
    }
    return Population("acas_xu", networks, labels, list(networks.run_ids), window), tasks


def by_layer(population: Population, compute: Callable[[Layout, Tensor], Tensor]) -> Tensor:
    """Features of layers by name, with NaN for layers that a network lacks: `[M, F]`.

    Args:
        population: Networks.
        compute: From layout and raw aligned tokens `[m, N, D]` to `[m, L * w]`, `w` features for each of the layers.
    """
    names = list(dict.fromkeys(layer.name for layout, _ in population.parts for layer in layout.layers))
    rows: dict[int, Tensor] = {}
    for layout, members in population.parts:
        values = compute(layout, aligned_tokens(population.networks.select(members)))
        values = values.view(len(members), len(layout.layers), -1)
        full = torch.full((len(members), len(names), values.shape[2]), torch.nan)
        full[:, [names.index(layer.name) for layer in layout.layers]] = values
        rows |= dict(zip(members, full.flatten(1), strict=True))
    return torch.stack([rows[index] for index in sorted(rows)])


def whole(population: Population, compute: Callable[[Layout, Tensor], Tensor]) -> Tensor:
    """Features of whole networks, in the same number for every shape: `[M, F]`."""
    rows: dict[int, Tensor] = {}
    for layout, members in population.parts:
        values = compute(layout, aligned_tokens(population.networks.select(members)))
        rows |= dict(zip(members, values, strict=True))
    return torch.stack([rows[index] for index in sorted(rows)])


def shape_facts(layout: Layout, tokens: Tensor) -> Tensor:
    """Sizes of a policy, which are known without its weights, for each network of a layout."""
    layers = {layer.name: layer for layer in layout.layers}
    actor = chains(list(layers))[0]
    spread = len(layers["log_std"].weight.shape) if "log_std" in layers else 0
    sizes = [layers[actor[0]].row_length, layers[actor[-1]].channels, layout.num_weights, len(layers), len(actor)]
    facts = [*np.log(sizes), *(spread == kind for kind in range(3)), "value_net" in layers]
    return torch.tensor(facts, dtype=torch.float32).repeat(len(tokens), 1)


def overall_statistics(layout: Layout, tokens: Tensor) -> Tensor:
    """s(W) of the whole network as one layer: 7 numbers."""
    weights = flattened_weights(tokens, layout)
    single = Layout.from_state_dict({"all": torch.empty(weights.shape[1], device="meta")}, token_dim=1)
    return layer_statistics(weights[..., None], single)


def baselines(population: Population) -> Features:
    """Features without an autoencoder."""
    found: Features = {
        "statistics_overall": whole(population, overall_statistics),
        "statistics": by_layer(population, lambda layout, tokens: layer_statistics(tokens, layout)),
        "tokens": by_layer(population, lambda layout, tokens: pool_latents(tokens, layout, "layer_mean_std")),
    }
    if len(population.parts) > 1:
        return {"shape": whole(population, shape_facts), **found}
    return {**found, "weights": whole(population, lambda layout, tokens: flattened_weights(tokens, layout))}


def deal(groups: Sequence[str], num_folds: int, seed: int) -> list[int]:
    """Fold of each network; groups stay together, and folds have nearly equal sizes."""
    counts = Counter(groups)
    names = sorted(counts)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    sizes, fold_of = [0] * num_folds, {}
    for name in sorted(order, key=lambda name: -counts[name]):
        fold_of[name] = int(np.argmin(sizes))
        sizes[fold_of[name]] += counts[name]
    return [fold_of[name] for name in groups]


def tokenizer(split: ZooSplit) -> SANEFeatureExtractor:
    """Statistics of each layer that all networks have, and by kind for other layers.

    Statistics of a layer in few networks would describe just these: normalisation would remove the scale of training
    networks, but not of networks that were left out.
    """
    extractor = fit_extractor([split], "standardize", by_kind=True)
    layouts = [layout for layout, _ in group_by_layout(split, range(len(split)))]
    common = set.intersection(*({layer_key(layer) for layer in layout.layers} for layout in layouts))
    kept = {
        name: {key: value for key, value in values.items() if key in common or key.startswith("*")}
        for name, values in (extractor.statistics or {}).items()
    }
    return SANEFeatureExtractor(token_dim=extractor.token_dim, statistics=kept, layer_orders=extractor.layer_orders)


def train_sanes(
    population: Population, fold_of: Sequence[int], seed: int, arguments: argparse.Namespace, work: Path
) -> Iterator[tuple[SANEModel, SANEFeatureExtractor, float]]:
    """For each fold, an autoencoder trained on all other networks, with its tokenizer and its R2 on the fold."""
    for fold in range(arguments.folds):
        inside = np.array(fold_of) == fold
        train, held_out = (population.networks.select(mask) for mask in (~inside, inside))
        extractor = tokenizer(train)
        settings = PretrainSettings(
            zoo=[population.name],
            output=str(work / f"{population.name}-{seed}-{fold}"),
            model={
                "hidden_size": arguments.hidden_size,
                "latent_dim": arguments.latent_dim,
                "num_hidden_layers": arguments.layers,
                "num_attention_heads": 4,
                "window_size": population.window,
                "position_embedding": "sinusoidal",
            },
            max_steps=arguments.steps,
            batch_size=arguments.batch,
            num_permutations=20,
            eval_every_epochs=0,
            halo_size=min(HALO, (population.window - 1) // 2),
            log_with="none",
            progress_bar=False,
            seed=seed,
        )
        zoo = Zoo({"train": train, "validation": held_out}, population.networks.facts)
        result = pretrain(settings, zoos=[zoo], extractor=extractor)
        yield SANEModel.from_pretrained(result.folder), extractor, result.reconstruction_r2


def embeddings(population: Population, model: SANEModel, extractor: SANEFeatureExtractor) -> dict[str, Tensor]:
    """Every pooling of every network: `{pooling: [M, F]}`."""

    def pooled(pooling: str) -> Callable[[Layout, Tensor], Tensor]:
        halo = min(HALO, (population.window - 1) // 2)
        return lambda layout, tokens: embed_networks(
            model, extractor, layout, tokens, poolings=[pooling], halo_size=halo
        )[pooling]

    return {name: (whole if name == "mean" else by_layer)(population, pooled(name)) for name in POOLINGS}


def answer(
    population: Population,
    task: Task,
    candidates: Mapping[str, Views],
    fold_of: Sequence[int] | None,
    permutations: int,
) -> dict[str, dict[str, Any]]:
    """Rows of a table, one per candidate."""
    rows = np.array(task.rows)

    def take(key: str | None) -> list[str] | None:
        return None if key is None else [population.labels[key][i] for i in task.rows]

    subset = {
        name: [torch.as_tensor(matrix)[rows] for matrix in (found if isinstance(found, list) else [found])]
        for name, found in candidates.items()
    }
    settings: dict[str, Any] = {
        "groups": take(task.left_out) or task.rows,
        "view_of": None if fold_of is None else [fold_of[i] for i in task.rows],
        "strata": take(task.strata),
        "num_permutations": permutations,
    }
    values = [population.labels[task.label][i] for i in task.rows]
    found: Mapping[str, LeftOutLabels | LeftOutNumbers]
    if task.number:
        found = regress_left_out(subset, torch.tensor([float(value) for value in values]), **settings)
    else:
        found = classify_left_out(subset, values, units=take(task.units), **settings)
    return {name: result.to_dict() for name, result in found.items()}


def trees(population: Population, task: Task, features: Tensor, count: int) -> dict[str, Any]:
    """The shape alone with a random forest, since a ridge probe may miss combinations of sizes."""
    rows = np.array(task.rows)
    x, y = features[rows].numpy(), np.array(population.labels[task.label])[rows]
    groups = rows if task.left_out is None else np.array(population.labels[task.left_out])[rows]
    forest = RandomForestClassifier(count, random_state=0)
    found = cross_val_predict(forest, x, y, groups=groups, cv=LeaveOneGroupOut())
    hits = int((found == y).sum())
    interval = stats.binomtest(hits, len(y)).proportion_ci(method="wilson")
    return {"accuracy": hits / len(y), "interval": [interval.low, interval.high]}


def measure(
    population: Population, tasks: Mapping[str, Task], arguments: argparse.Namespace, work: Path
) -> dict[str, Any]:
    """All results for one population."""
    for name, matrix in baselines(population).items() if "baselines" in arguments.parts else ():
        for task in tasks.values():
            task.results.update(answer(population, task, {name: matrix}, None, arguments.permutations))
            if name == "shape":
                task.results["shape_trees"] = trees(population, task, matrix, arguments.trees)
    reconstruction: list[float] = []
    for seed in arguments.seeds if "sane" in arguments.parts else ():
        fold_of = deal(population.fold_groups, arguments.folds, seed)
        views: dict[str, list[Tensor]] = {name: [] for name in POOLINGS}
        for model, extractor, r2 in train_sanes(population, fold_of, seed, arguments, work):
            reconstruction.append(r2)
            for name, matrix in embeddings(population, model, extractor).items():
                views[name].append(matrix)
        for task in tasks.values():
            for name, result in answer(population, task, views, fold_of, arguments.permutations).items():
                task.results.setdefault(f"sane_{name}", []).append(result)
    return {
        "reconstruction_r2": reconstruction,
        "tasks": {name: describe(population, task) for name, task in tasks.items()},
    }


def describe(population: Population, task: Task) -> dict[str, Any]:
    """A task with its networks and results, for the record."""
    labels = Counter(population.labels[task.label][i] for i in task.rows)
    groups = task.rows if task.left_out is None else {population.labels[task.left_out][i] for i in task.rows}
    return {
        "networks": len(task.rows),
        "labels": dict(sorted(labels.items())),
        "left_out": task.left_out or "network",
        "groups": len(groups),
        "features": task.results,
    }


def _score(rows: Any) -> list[float]:
    """Accuracy or Kendall's tau of every seed."""
    found = rows if isinstance(rows, list) else [rows]
    return [round(row["kendall_tau" if "kendall_tau" in row else "accuracy"], 3) for row in found]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(
        __doc__,
        former={
            "--batch": "--batch-size",
            "--window": "--window-size",
            "--permutations": "--num-permutations",
            "--layers": "--num-layers",
        },
    )
    parser.add_argument("--policies", help="folder of <algorithm>__<environment>.safetensors")
    parser.add_argument("--acasxu", help="folder of *_<advisory>_<tau>_*.safetensors")
    parser.add_argument("--parts", nargs="+", choices=("baselines", "sane"), default=["baselines", "sane"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of folds and autoencoders")
    parser.add_argument("--folds", type=int, default=3, help="autoencoders per seed, each without one fold")
    parser.add_argument("--steps", type=int, default=150, help="steps of pre-training, per autoencoder")
    parser.add_argument("--batch-size", dest="batch", type=int, default=8, help="windows per step")
    parser.add_argument("--window-size", dest="window", type=int, default=64, help="tokens per window")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=32)
    parser.add_argument("--num-layers", dest="layers", type=int, default=2)
    parser.add_argument("--num-permutations", dest="permutations", type=int, default=99, help="of labels")
    parser.add_argument("--trees", type=int, default=50, help="trees of the forest for shapes")
    arguments, record = start(parser, argv)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, read in (("policies", policies), ("acasxu", acas_xu)):
            if (source := getattr(arguments, name)) is not None:
                work = Path(folder) / name
                population, tasks = read(source, work / "zoo", arguments.window)
                report[population.name] = measure(population, tasks, arguments, work)
    if not report:
        parser.error("expected --policies, --acasxu or both, got neither")
    for population_name, found in report.items():
        for task, result in found["tasks"].items():
            print(population_name, task, {name: _score(rows) for name, rows in result["features"].items()})
    split = (
        "every network is predicted by probes fitted on other groups, and embedded by a SANE trained on other folds"
    )
    return finish(record, report, arguments.output, data={"split": split})


if __name__ == "__main__":
    run_script(main, name="beyond_vision.py")
