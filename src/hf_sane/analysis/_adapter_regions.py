"""Represent LoRA adapters as points, by their weight changes at any rank."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from hf_sane.analysis._regions import RegionMap
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._checkpoints import CheckpointSource

Factors = Mapping[str, tuple[Tensor, Tensor]]  # A [r, inputs] and s B [outputs, r] by target module


def shared_modules(adapters: Mapping[str, Factors]) -> list[str]:
    """Target modules that all adapters have, in the order of the first.

    Raises:
        ValueError: If there are none, or the shapes of a change differ.
    """
    first, *others = adapters
    shared = [module for module in adapters[first] if all(module in adapters[other] for other in others)]
    if not shared:
        raise ValueError(
            f"the adapters {list(adapters)} have no target module in common; pass adapters that share one"
        )
    for module in shared:
        shapes = {name: _shape(factors[module]) for name, factors in adapters.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"adapters change {module!r} with different shapes, {shapes}; pass adapters of one base model"
            )
    return shared


def product_gram(factors: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Scalar products of low-rank changes of the same shape, without forming them.

    `<B_1 A_1, B_2 A_2> = sum((B_1^T B_2) * (A_1 A_2^T))`: small matrices of rank times rank.

    Args:
        factors: `A` `[r, inputs]` and `s B` `[outputs, r]` by name; ranks may differ.

    Returns:
        `[M, M]` float64, symmetric.

    Raises:
        ValueError: If shapes differ, or factors are not finite.
    """
    for name, (first, second) in factors.items():
        if not (first.isfinite().all() and second.isfinite().all()):
            raise ValueError(f"{name} is not finite (NaN or infinite weights); leave it out")
    shapes = {name: _shape(pair) for name, pair in factors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected changes of the same shape, got {shapes}")
    inner = torch.cat([first.flatten(1).double() for first, _ in factors.values()])  # [sum of ranks, inputs]
    outer = torch.cat([second.flatten(1).double() for _, second in factors.values()], dim=1)  # [outputs, sum of ranks]
    products = (outer.mT @ outer) * (inner @ inner.mT)
    ranks = [len(first) for first, _ in factors.values()]
    owner = torch.nn.functional.one_hot(
        torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    ).double()
    return owner.mT @ products @ owner


def points_from_gram(gram: Tensor) -> Tensor:
    """Points `[M, M]` float64 whose scalar products are `gram` `[M, M]`, which preserves distances and angles."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt()


def adapter_points(adapters: Mapping[str, Factors]) -> Tensor:
    """Represent adapters of one base model as points, by the products `s B A` of their common target modules.

    Factors have a gauge freedom (`A -> M A`, `B -> B M^-1`) that does not affect the adapter, so only products can be
    compared. Distances between the points are exactly those between the changes of all shared weights.

    Args:
        adapters: `{target module: (A, s B)}` by name, see `open_factors`.

    Returns:
        `[M, M]` float64.

    Raises:
        ValueError: If there are fewer than two adapters, they have no module in common, shapes differ, or factors are
            not finite.
    """
    if len(adapters) < 2:
        raise ValueError(f"expected at least two adapters to compare, got {list(adapters)}")
    gram = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for module in shared_modules(adapters):
        gram += product_gram({name: factors[module] for name, factors in adapters.items()})
    return points_from_gram(gram)


def equal_adapters(adapters: Mapping[str, Factors]) -> list[tuple[str, str]]:
    """Pairs of names with identical factors, which are copies of the same adapter."""
    return [
        (first, second)
        for (first, mine), (second, others) in combinations(adapters.items(), 2)
        if mine.keys() == others.keys()
        and all(all(map(torch.equal, pair, others[module])) for module, pair in mine.items())
    ]


def adapter_map(
    pairs: Sequence[str], *, base: str | None = None, subfolder: str | None = None, variant: str | None = None
) -> tuple[RegionMap, list[str]]:
    """Map adapters by the task they were trained for.

    Args:
        pairs: `LABEL=SOURCE`, where the source is a file, folder or Hub repo id.
        base: Base model, for adapters whose changes depend on it.
        subfolder: Subfolder with the adapter, in every source.
        variant: Precision of each adapter, such as `"fp16"`.

    Returns:
        The map, with the level `label`, and notes about layers that were left out.

    Raises:
        ValueError: If a label is missing, or an adapter occurs twice.
    """
    if bad := [pair for pair in pairs if not all(pair.partition("=")[::2])]:
        raise ValueError(f"expected adapters as LABEL=SOURCE, got {bad}; say what each was trained for")
    sources = {f"{index}: {pair}": pair.partition("=")[2] for index, pair in enumerate(pairs)}
    factors = {
        name: open_factors(CheckpointSource(source, subfolder=subfolder, variant=variant), base=base)
        for name, source in sources.items()
    }
    if twins := equal_adapters(factors):
        raise ValueError(
            f"these adapters are the same, weight by weight: {'; '.join(' and '.join(pair) for pair in twins)}. "
            "Distances within and between labels would count an adapter twice; name each only once"
        )
    num_shared = len(shared_modules(factors))
    notes = [
        f"{name}: {len(changes) - num_shared} of its {len(changes)} layers are left out, since not all adapters "
        "change them"
        for name, changes in factors.items()
        if len(changes) > num_shared
    ]
    return RegionMap(adapter_points(factors), {"label": [pair.partition("=")[0] for pair in pairs]}), notes


def _shape(factors: tuple[Tensor, Tensor]) -> tuple[int, ...]:
    first, second = factors
    return (second.shape[0], *first.shape[1:])
