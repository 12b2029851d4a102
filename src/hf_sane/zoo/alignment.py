"""Bring the networks of a zoo close to one reference by permuting their channels, which changes no function."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hf_sane.core.matching import match_many
from hf_sane.core.types import StateDict
from hf_sane.zoo.alignment_record import Alignment
from hf_sane.zoo.dataset import Zoo, ZooSplit
from hf_sane.zoo.permutations import permutation_spec
from hf_sane.zoo.token_permutations import TokenPermutations, token_permutation_indices

MATCH_BYTES = 512 * 2**20  # weights held at a time


def align_zoo(zoo: Zoo, *, reference: StateDict | None = None) -> Zoo:
    """Align every training run of a zoo to a reference network.

    As in SANE (arXiv:2406.09997): weight matching of git re-basin (arXiv:2209.04836) between a run's last epoch and the
    reference; that permutation serves all epochs of the run, so that its trajectory stays one. The reference is the first
    training run at its last epoch. Networks that are not finite (kept on request) stay as they are. Unlike the released code, which stores aligned copies, only permutations are kept:
    `aligned_tokens` and the window sampler apply them while reading.

    Args:
        zoo: To align; each of its architectures gets its own reference.
        reference: A network to align to instead, if the zoo has one architecture.

    Returns:
        The zoo with its [`Alignment`].

    Raises:
        ValueError: If `reference` is given for several architectures.
    """
    finals = {name: split.final_epochs() for name, split in zoo.splits.items()}
    architectures = sorted({str(key) for split in finals.values() for key in split.column("architecture")})
    if reference is not None and len(architectures) > 1:
        raise ValueError(f"one reference cannot serve the architectures {architectures}; align without it")
    references, run_ids, permutations = {}, {}, {}
    for architecture in architectures:
        parts = [split.select(split.column("architecture") == architecture) for split in finals.values()]
        parts = [part for part in parts if len(part)]
        spec = permutation_spec(parts[0].config(0))
        first = next((i for i in range(len(parts[0])) if parts[0].tokens(i).isfinite().all()), 0)
        target = parts[0].state_dict(first) if reference is None else reference
        found = [_match(part, rows, target) for part in parts for rows in _pieces(part)]
        references[architecture] = parts[0].run_ids[first] if reference is None else "given"
        run_ids[architecture] = [run_id for part in parts for run_id in part.run_ids]
        permutations[architecture] = {axis: torch.cat([piece[axis] for piece in found]) for axis in spec.sizes}
    return zoo.with_alignment(Alignment(references, run_ids, permutations))


def _pieces(split: ZooSplit) -> list[np.ndarray]:
    """Positions of networks to match together: bounded in memory."""
    size = max(1, MATCH_BYTES // (4 * split.tokens(0).numel()))
    return [np.arange(start, min(start + size, len(split))) for start in range(0, len(split), size)]


def _match(split: ZooSplit, rows: np.ndarray, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`[len(rows), n]` per axis; networks that are not finite (kept on request) stay as they are."""
    part = split.select(rows)
    spec = permutation_spec(part.config(0))
    tensors = part.stacked_tensors()
    finite = torch.stack([tensor.reshape(len(part), -1).isfinite().all(dim=1) for tensor in tensors.values()]).all(
        dim=0
    )
    permutations = spec.identity(len(part))
    for axis, index in match_many(spec, reference, {name: tensor[finite] for name, tensor in tensors.items()}).items():
        permutations[axis][finite] = index
    return permutations


def token_permutations(split: ZooSplit) -> TokenPermutations:
    """The alignment of a split's architecture, in token space.

    Raises:
        ValueError: If the zoo is not aligned, or the split mixes layouts or architectures.
    """
    if split.alignment is None:
        raise ValueError("this zoo is not aligned; expected an alignment beside it, make one with align_zoo(zoo)")
    for name in ("layout", "architecture"):
        if len(values := sorted(set(split.column(name)))) != 1:
            raise ValueError(f"expected networks of one {name}, got {values}; select one of them first")
    permutations = split.alignment.permutations[str(split.column("architecture")[0])]
    return TokenPermutations(permutation_spec(split.config(0)), split.layout(0), permutations)


def aligned_tokens(split: ZooSplit) -> Tensor:
    """Raw tokens of all networks, each permuted onto the reference: `[M, N, D]` float32.

    Templates are not permuted: with BatchNorm outside the tokens, aligned tokens do not decode to the same function.

    Raises:
        ValueError: If the zoo is not aligned, or the networks differ in layout or architecture.
    """
    found = token_permutations(split)
    assert split.alignment is not None
    chosen = split.alignment.index(str(split.column("architecture")[0]), split.run_ids)
    return found.apply(split.stacked_tokens(), chosen)


__all__ = ["Alignment", "align_zoo", "aligned_tokens", "token_permutation_indices", "token_permutations"]
