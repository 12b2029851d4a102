"""Fingerprints of networks that do not depend on the order and positive scales of channels, or on the file format."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from hf_sane.screening._float8 import readable
from hf_sane.screening._plain import plain_tensors

LEVELS = (0.02, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 0.98)  # quantiles over channels
NUM_FEATURES = 6 * len(LEVELS)  # per matrix: two measures over rows, columns and the rest
MAX_VALUES = 2**26  # limit for features; larger matrices, mostly embeddings, are only part of the digest
HASHED = 2**20  # values at a time
SWEEPS = 30  # iterations of balancing; dense matrices need about five
DIGEST_DIGITS = 32


@dataclass(frozen=True)
class Fingerprint:
    """Identifies a network regardless of the order of its channels.

    Attributes:
        digest: Digest of the weights, which does not depend on the order of rows and columns, on names, or on the type
            if it is exact. It does not tell whether the orders of different layers fit together, which requires a
            comparison.
        shapes: Shapes of the matrices with features, by name.
        features: `[matrices, NUM_FEATURES]` float32, which change little under rounding, scaling of channels and
            fine-tuning.
    """

    digest: str
    shapes: Mapping[str, tuple[int, ...]]
    features: Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> Fingerprint:
    """Compute the fingerprint of a network.

    Args:
        tensors: Tensors by name, which are read one at a time.

    Raises:
        ValueError: If there are no weights, or values that are not plain.
    """
    tensors = plain_tensors(tensors)
    digests, shapes, features = set(), {}, []
    for name in tensors:
        tensor = readable(tensors[name].detach())
        if not is_weights(tensor):
            continue
        digests.add(_digest(tensor))  # a set, since tied tensors may be stored once or twice
        if tensor.ndim > 1 and tensor.numel() <= MAX_VALUES:
            shapes[name] = tuple(tensor.shape)
            features.append(matrix_features(tensor[None])[0])
    if not digests:
        raise ValueError("expected a network with weights, got no floating-point tensors")
    together = sha256("".join(sorted(digests)).encode()).hexdigest()[:DIGEST_DIGITS]
    stacked = torch.stack(features) if features else torch.empty(0, NUM_FEATURES)
    return Fingerprint(together, shapes, stacked.float())


def fingerprint_many(tensors: Mapping[str, Tensor]) -> list[Fingerprint]:
    """Compute the fingerprints of many small networks of one architecture, as in [`fingerprint`].

    Args:
        tensors: `{name: [M, *shape]}`.
    """
    weights = {name: readable(tensor.detach()) for name, tensor in tensors.items() if is_weights(tensor)}
    shapes = {name: tuple(x.shape[1:]) for name, x in weights.items() if x.ndim > 2}
    count = len(next(iter(weights.values())))
    features = [matrix_features(weights[name]) for name in shapes]
    stacked = torch.stack(features, dim=1) if features else torch.empty(count, 0, NUM_FEATURES)
    found = []
    for i in range(count):
        digests = sorted({_digest(tensor[i]) for tensor in weights.values()})
        digest = sha256("".join(digests).encode()).hexdigest()[:DIGEST_DIGITS]
        found.append(Fingerprint(digest, shapes, stacked[i].float()))
    return found


def matrix_features(tensors: Tensor) -> Tensor:
    """Features of matrices that are invariant to permutations and positive scales of rows and columns.

    A matrix is first balanced: its rows and columns are scaled to mean square 1, which has a unique solution (Sinkhorn
    1967). The features are quantiles of the mean and mean absolute value of every row, column and kernel position.
    They are divided by their standard deviation in a matrix of independent values, so that features of independent
    networks differ by about 1, and features of networks with relative difference `e` by about `e`.

    Args:
        tensors: `[M, rows, columns, *kernel]`.

    Returns:
        `[M, NUM_FEATURES]` float64.
    """
    values = torch.view_as_real(tensors) if tensors.is_complex() else tensors
    values = torch.nan_to_num(values.flatten(3) if values.ndim > 3 else values.unsqueeze(3)).double()
    largest = values.abs().amax((1, 2, 3), keepdim=True)
    values = _balance(values / torch.where(largest > 0, largest, 1.0))
    levels = torch.tensor(LEVELS, dtype=values.dtype)
    found = []
    for dim in (1, 2, 3):
        others = [other for other in (1, 2, 3) if other != dim]
        count = values.shape[dim]
        spread = (values[0].numel() / count) ** 0.5 * count**0.5
        for measure in (values, values.abs()):
            found.append(torch.quantile(measure.mean(others), levels, dim=1).T * spread)
    return torch.cat(found, dim=1)


def _balance(values: Tensor) -> Tensor:
    """Scale rows and columns of `[M, rows, columns, positions]` to mean square 1."""
    squares = values.square().mean(3)
    rows, columns = torch.ones_like(squares[:, :, 0]), torch.ones_like(squares[:, 0])
    for _ in range(SWEEPS):
        rows = _inverse(torch.einsum("mrc,mc->mr", squares, columns) / squares.shape[2])
        columns = _inverse(torch.einsum("mrc,mr->mc", squares, rows) / squares.shape[1])
    return values * rows.sqrt()[:, :, None, None] * columns.sqrt()[:, None, :, None]


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 1.0)  # rows and columns of zeros are kept


def is_weights(tensor: Tensor) -> bool:
    """Whether a tensor holds weights, and not counters, masks or position indices."""
    return tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.int8)


def _digest(tensor: Tensor) -> str:
    """Digest of a tensor that is invariant to permutations of any of its dimensions.

    Every value is hashed to 64 bits; sums of hashes (modulo 2^64) over each slice of a dimension are hashed and summed
    again. Sums do not depend on the order, and integer sums are exact.
    """
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    plain = plain if plain.ndim else plain[None]
    sums = [np.zeros(size, dtype=np.uint64) for size in plain.shape]
    step = max(1, HASHED // max(1, plain[0].numel()))
    for start in range(0, len(plain), step):
        part = plain[start : start + step].double().cpu().numpy()
        part = np.where(np.isnan(part), np.nan, part) + 0.0  # a single NaN, and no negative zero
        mixed = _mix(part.view(np.uint64))
        for dim, total in enumerate(sums):
            others = tuple(other for other in range(mixed.ndim) if other != dim)
            place = slice(start, start + step) if dim == 0 else slice(None)
            total[place] += mixed.sum(axis=others, dtype=np.uint64)
    slices = [int(_mix(total).sum(dtype=np.uint64)) for total in sums]
    return sha256(repr((tuple(plain.shape), slices)).encode()).hexdigest()


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
