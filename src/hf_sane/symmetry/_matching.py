"""Git re-basin weight matching: permute networks, many at once, to be as close as possible to a reference."""

from collections.abc import Iterator, Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_sane.records._progress import tracked
from hf_sane.symmetry._blocks import Blocks
from hf_sane.symmetry._parts import reorder
from hf_sane.symmetry._permutation import Occurrence, Permutation, PermutationSpec, gather_stacked

# Gains below this share of |A||B| are rounding errors; accepting such assignments could cycle.
RELATIVE_GAIN = 1e-12
CHUNK_BYTES = 256 * 2**20  # float64 working copy of models that are matched together


def match_weights(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    *,
    max_iterations: int = 100,
    generator: torch.Generator | None = None,
) -> Permutation:
    """Find the permutation that aligns a network to a reference; [`match_many`] is far faster for several.

    Args:
        spec: Permutation symmetries of both networks.
        reference: `{name: [*shape]}`, the fixed network.
        state_dict: `{name: [*shape]}`, the network to permute.
        max_iterations: Maximum number of sweeps over all axes.
        generator: If given, axes are visited in a new random order in each sweep; otherwise in the order of the spec.

    Returns:
        `[n]` int64 per axis; `spec.apply(state_dict, permutation)` is the aligned network.

    Raises:
        KeyError, ValueError: As in [`match_many`].
    """
    stacked = {name: tensor.unsqueeze(0) for name, tensor in state_dict.items()}
    permutations = match_many(spec, reference, stacked, max_iterations=max_iterations, generator=generator)
    return {axis: index[0] for axis, index in permutations.items()}


def match_many(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    max_iterations: int = 100,
    generator: torch.Generator | None = None,
) -> Permutation:
    """Find, for each of many networks, the permutation that aligns it to one reference.

    Weight matching of git re-basin (Ainsworth et al. 2022, arXiv:2209.04836, algorithm 1): maximise
    `sum_t <A_t, P(B)_t>` over the permutations, which minimises `|A - P(B)|^2`, by coordinate ascent. With all other
    axes held fixed, the best permutation of one axis solves a linear assignment problem with the costs
    `C[i, j] = sum of <A_t at entry i, B_t at entry j>` over the tensors that contain the axis. Sweeps repeat until a
    network gains nothing.

    Deviations: cost matrices of all networks are computed in one batched product, in float64, and only the assignments
    run one by one; networks that have converged drop out. Axes are visited in the order of the spec instead of a
    random one, so the result is reproducible (pass `generator` for random orders). An assignment is accepted only if
    it gains more than rounding, so the objective never decreases. Running statistics (`spec.unmatched`) are not
    compared: they have the scale of activations and would outweigh the weights. An axis made of parts (heads x
    dimensions of a head) is solved part by part, with pairs of blocks compared in their best inner order if that can
    be computed. If a tensor holds an axis twice (a square matrix on a residual stream), the problem is quadratic: each
    dimension is solved with the other one fixed, and the result is accepted only if the objective increases.

    Args:
        spec: Permutation symmetries of all networks.
        reference: `{name: [*shape]}`, the fixed network, `A`.
        tensors: `{name: [M, *shape]}`, the networks to permute, `B`.
        max_iterations: Maximum number of sweeps over all axes, >= 1.
        generator: If given, axes are visited in a new random order in each sweep.

    Returns:
        `[M, n]` int64 per axis, on the CPU; `spec.apply(tensors, permutation, batch_dims=1)` are the aligned networks.

    Raises:
        KeyError: If tensors are missing or not part of the spec.
        ValueError: If shapes differ from the spec or the reference, weights are not finite, or `max_iterations < 1`.
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    names = _matched_names(spec)
    _check_pair(spec, names, reference, tensors)
    fixed = {name: reference[name].detach().double() for name in names}
    if bad := [name for name in names if not fixed[name].isfinite().all()]:
        raise ValueError(f"the reference has weights that are not finite in {bad}; choose another reference")
    num_models = len(next(iter(tensors.values())))
    if not names:  # nothing can move, as in a linear map, or nothing determines the order
        return spec.identity(num_models)
    model_bytes = max(1, sum(8 * tensor.numel() for tensor in fixed.values()))
    chunk = max(1, CHUNK_BYTES // model_bytes)
    parts = []
    for start in tracked(range(0, num_models, chunk), desc="aligning", unit="batch"):
        part = {name: tensors[name][start : start + chunk].detach() for name in names}
        moving = {name: tensor.to(torch.float64, copy=True) for name, tensor in part.items()}  # permuted in place
        _check_finite(moving, start)
        parts.append(_Ascent(spec, fixed, moving).run(max_iterations, generator))
    if not parts:
        return spec.identity(0)
    return {axis: torch.cat([part[axis] for part in parts]) for axis in spec.sizes}


def weight_similarity(
    spec: PermutationSpec, reference: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, batch_dims: int = 0
) -> Tensor:
    """The objective of weight matching, `sum_t <A_t, B_t>` over the matched tensors.

    Args:
        spec: Permutation symmetries of both networks.
        reference: `{name: [*shape]}`.
        tensors: `{name: [*shape]}`, or `{name: [M, *shape]}` with `batch_dims=1`.
        batch_dims: 0 or 1.

    Returns:
        Float64, 0-d or `[M]`.

    Raises:
        KeyError: If tensors are missing or not part of the spec.
        ValueError: If shapes differ from the spec or the reference.
    """
    names = _matched_names(spec)
    stacked = {name: tensor if batch_dims else tensor.unsqueeze(0) for name, tensor in tensors.items()}
    _check_pair(spec, names, reference, stacked)
    products = [
        stacked[name].double().flatten(1) @ reference[name].to(stacked[name].device).double().flatten()
        for name in names
    ]
    total = torch.stack(products).sum(dim=0)
    return total if batch_dims else total[0]


def _matched_names(spec: PermutationSpec) -> list[str]:
    """Tensors to compare: those that hold an axis, unless they are `unmatched`."""
    holding = {place.tensor for places in spec.occurrences.values() for place in places}
    return [name for name in spec.axes if name in holding and name not in spec.unmatched]


def _check_pair(
    spec: PermutationSpec, names: list[str], reference: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    if missing := [name for name in names if name not in reference or name not in tensors]:
        raise KeyError(f"tensors {missing} of the permutation spec are missing from the reference or the networks")
    spec.check_tensors(reference)
    spec.check_tensors(tensors, batch_dims=1)
    for name in names:
        if reference[name].shape != tensors[name].shape[1:]:
            raise ValueError(
                f"{name!r} is {list(reference[name].shape)} in the reference and {list(tensors[name].shape[1:])} in "
                "the networks; align networks of one architecture"
            )


def _check_finite(moving: Mapping[str, Tensor], start: int) -> None:
    for name, tensor in moving.items():
        finite = tensor.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            bad = (start + (~finite).nonzero().flatten()).tolist()
            raise ValueError(f"weights of {name!r} are not finite in networks {bad}; leave them out before aligning")


class _Ascent:
    """Coordinate ascent over one chunk of networks; `moving` always holds the networks as permuted so far."""

    def __init__(self, spec: PermutationSpec, fixed: dict[str, Tensor], moving: dict[str, Tensor]) -> None:
        self.spec = spec
        self.places = {
            name: [place for place in places if place.tensor in fixed]
            for name, places in spec.generator_occurrences.items()
        }
        self.quadratic = {name: _held_twice(places) for name, places in self.places.items()}
        self.moving = moving
        self.device = next(iter(moving.values())).device
        self.reference = {name: tensor.to(self.device) for name, tensor in fixed.items()}
        self.fixed = {name: self._of_reference(places) for name, places in self.places.items() if places}
        self.blocks: dict[str, Blocks] = {}
        self.fixed_plain: dict[str, Tensor] = {}
        for name in self.fixed:
            if (blocks := Blocks.find(spec, name, self.places)) is not None:
                self.blocks[name] = blocks
                if blocks.plain:
                    self.fixed_plain[name] = self._of_reference(blocks.plain)
        self.permutation = spec.identity(len(next(iter(moving.values()))))

    def _of_reference(self, places: list[Occurrence]) -> Tensor:
        """All values of the reference that belong to each entry: `[n, features]`."""
        return self._entries({name: tensor.unsqueeze(0) for name, tensor in self.reference.items()}, places)[0]

    def _entries(self, tensors: Mapping[str, Tensor], places: list[Occurrence]) -> Tensor:
        """All values that belong to each entry of an axis that occurs at `places`: `[M, n, features]`."""
        parts = []
        for place in places:
            tensor = tensors[place.tensor]
            entries = tensor.movedim(place.dim + 1, 1)
            if place.positions.numel() != entries.shape[1] or not _is_range(place.positions):
                entries = entries.index_select(1, place.positions.flatten().to(tensor.device))
            parts.append(entries.reshape(len(tensor), len(place.positions), -1))
        return torch.cat(parts, dim=2)

    def run(self, max_iterations: int, generator: torch.Generator | None) -> Permutation:
        """Sweep until no network gains; return `[M, n]` per axis."""
        axes = list(self.fixed)
        active = torch.arange(len(next(iter(self.moving.values()))))
        # An axis must be solved again only after an axis that shares a tensor with it has moved.
        stale = {axis: torch.ones(len(active), dtype=torch.bool) for axis in axes}
        neighbours = {axis: self._neighbours(axis) for axis in axes}
        for _ in range(max_iterations):
            order = torch.randperm(len(axes), generator=generator).tolist() if generator else range(len(axes))
            for axis in (axes[i] for i in order):
                rows = stale[axis].nonzero().flatten()
                if not len(rows):
                    continue
                moved = rows[self._improve(axis, active, rows)]
                stale[axis][rows] = False
                for other in neighbours[axis]:
                    stale[other][moved] = True
            going = torch.stack(list(stale.values())).any(dim=0)
            if not going.any():
                break
            if not going.all():
                active = active[going]
                stale = {axis: mask[going] for axis, mask in stale.items()}
                keep = going.to(self.device)
                self.moving = {name: tensor[keep] for name, tensor in self.moving.items()}
        return self.permutation

    def _neighbours(self, axis: str) -> list[str]:
        tensors = {place.tensor for place in self.places[axis]}
        return [
            other
            for other, places in self.places.items()
            # A square matrix makes the costs of an axis depend on its own order.
            if (other != axis or self.quadratic[axis]) and any(place.tensor in tensors for place in places)
        ]

    def _improve(self, axis: str, active: Tensor, rows: Tensor) -> Tensor:
        """Solve one axis for the networks `rows` of the active ones; apply gains and return which gained (bool)."""
        if axis in self.blocks:
            return self._improve_blocks(axis, active, rows)
        costs, scale = self._costs(self.fixed[axis], self.places[axis], rows)
        relative = torch.stack(list(_assignments(costs)))
        gains = costs.gather(2, relative.unsqueeze(2)).sum(dim=(1, 2)) - costs.diagonal(dim1=1, dim2=2).sum(1)
        gained = gains > RELATIVE_GAIN * scale
        if self.quadratic[axis] and gained.any():
            gained[gained.clone()] = self._really_gains(axis, rows[gained], relative[gained])
        if gained.any():
            self._apply(axis, active, rows[gained], relative[gained])
        return gained

    def _improve_blocks(self, axis: str, active: Tensor, rows: Tensor) -> Tensor:
        """Match whole blocks, scored in their best inner order; apply gains and return which gained (bool)."""
        blocks, size = self.blocks[axis], self.spec.generators[axis].size
        costs, scale = torch.zeros(len(rows), size, size, dtype=torch.float64), torch.zeros(len(rows))
        if blocks.plain:
            costs, scale = self._costs(self.fixed_plain[axis], blocks.plain, rows)
        now = costs.diagonal(dim1=1, dim2=2).sum(dim=1)
        orders = []
        for slots in blocks.inside:
            fixed = torch.stack([self.fixed[slot] for slot in slots])
            entries = torch.stack(
                [self._entries(self.moving, self.places[slot])[rows.to(self.device)] for slot in slots], dim=1
            )
            # [m, blocks of the reference, blocks of the network, n, n]
            inner = (fixed[None, :, None] @ entries[:, None].mT).cpu()
            order = torch.stack(list(_assignments(inner.flatten(0, 2)))).view(inner.shape[:-1])
            costs = costs + inner.gather(-1, order.unsqueeze(-1)).sum(dim=(-2, -1))
            now = now + inner.diagonal(dim1=1, dim2=2).diagonal(dim1=1, dim2=2).sum(dim=(1, 2))
            scale = scale + (fixed.norm() * entries.flatten(1).norm(dim=1)).cpu()
            orders.append(order)
        relative = torch.stack(list(_assignments(costs)))
        gained = costs.gather(2, relative.unsqueeze(2)).sum(dim=(1, 2)) - now > RELATIVE_GAIN * scale
        if gained.any():
            self._apply(axis, active, rows[gained], relative[gained])
            which = torch.arange(int(gained.sum()))
            for slots, order in zip(blocks.inside, orders, strict=True):
                for block, slot in enumerate(slots):
                    here = order[gained, block][which, relative[gained, block]]
                    self._apply(slot, active, rows[gained], here)
        return gained

    def _costs(self, fixed: Tensor, places: list[Occurrence], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Costs `[m, n, n]` (entry of the reference x entry of the network) and their scale `[m]`, both on the CPU."""
        entries = self._entries(self.moving, places)
        if len(rows) < len(entries):
            entries = entries[rows.to(self.device)]
        return (fixed @ entries.mT).cpu(), (fixed.norm() * entries.flatten(1).norm(dim=1)).cpu()

    def _apply(self, axis: str, active: Tensor, winners: Tensor, relative: Tensor) -> None:
        """Reorder one generator of the networks `winners` of the active ones by `relative` `[len(winners), n]`."""
        for made, entries in self.spec.generators[axis].entries.items():
            index = self.permutation[made][active[winners]]
            reorder(index, entries, relative)
            self.permutation[made][active[winners]] = index
        for found in self.places[axis]:
            self._reorder(found.tensor, found.dim, found.positions, winners, relative)

    def _really_gains(self, axis: str, rows: Tensor, relative: Tensor) -> Tensor:
        """If tensors hold the axis twice: whether the objective itself increases for the networks `rows` (bool)."""
        before = {place.tensor: self.moving[place.tensor] for place in self.places[axis]}
        where = rows.to(self.device)
        self.moving |= {name: tensor[where] for name, tensor in before.items()}
        for found in self.places[axis]:
            self._reorder(found.tensor, found.dim, found.positions, torch.arange(len(rows)), relative)
        gains = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for name, tensor in before.items():
            change = (self.moving[name] - tensor[where]).flatten(1)
            gains += change @ self.reference[name].flatten()
        self.moving |= before
        scale = sum(tensor[where].flatten(1).norm(dim=1) * self.reference[n].norm() for n, tensor in before.items())
        return (gains > RELATIVE_GAIN * scale).cpu()

    def _reorder(self, name: str, dim: int, positions: Tensor, winners: Tensor, relative: Tensor) -> None:
        tensor = self.moving[name]
        index = torch.arange(tensor.shape[dim + 1]).repeat(len(winners), 1)
        index[:, positions.flatten()] = positions[relative].flatten(1)
        index = index.to(self.device)
        if len(winners) == len(tensor):
            self.moving[name] = gather_stacked(tensor, {dim: index})
        else:
            where = winners.to(self.device)
            tensor[where] = gather_stacked(tensor[where], {dim: index})


def _held_twice(places: list[Occurrence]) -> list[str]:
    """Tensors that hold an axis in more than one dimension."""
    dims: dict[str, set[int]] = {}
    for place in places:
        dims.setdefault(place.tensor, set()).add(place.dim)
    return [tensor for tensor, found in dims.items() if len(found) > 1]


def _is_range(positions: Tensor) -> bool:
    return torch.equal(positions.flatten(), torch.arange(positions.numel()))


def _assignments(costs: Tensor) -> Iterator[Tensor]:
    """Solve the assignment problem of each `[n, n]` matrix for the largest sum."""
    for matrix in costs.numpy():
        yield torch.from_numpy(linear_sum_assignment(matrix, maximize=True)[1])
