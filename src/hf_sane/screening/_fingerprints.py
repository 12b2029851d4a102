"""Fingerprints of networks: what neither the order nor positive scales of channels change, nor how they were saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

LEVELS = (0.02, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 0.98)  # of the quantiles over channels
NUM_FEATURES = 6 * len(LEVELS)  # of a matrix: two measures over rows, columns and the rest
MAX_VALUES = 2**26  # of a matrix with features; larger ones, mostly embeddings, take part in the digest only
HASHED = 2**20  # values at a time
SWEEPS = 30  # of balancing; dense matrices need about five
DIGEST_DIGITS = 32


@dataclass(frozen=True)
class Fingerprint:
    """What a network is recognised by, whatever the order of its channels.

    Attributes:
        digest: Equal for equal weights in any order of rows and columns, under any names and in any type that holds
            them exactly. It does not say whether the layers fit together: that takes a comparison.
        shapes: Of the matrices with features, by name.
        features: `[matrices, NUM_FEATURES]` float32; rounding, scales of channels, and fine-tuning change them little.
    """

    digest: str
    shapes: Mapping[str, tuple[int, ...]]
    features: Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> Fingerprint:
    """Fingerprint of a network.

    Args:
        tensors: By name; read one at a time.

    Raises:
        ValueError: If there are no weights.
    """
    digests, shapes, features = set(), {}, []
    for name in tensors:
        tensor = tensors[name].detach()
        if not _is_weights(tensor):
            continue
        digests.add(_digest(tensor))  # a set: tied tensors may be stored once or twice
        if tensor.ndim > 1 and tensor.numel() <= MAX_VALUES:
            shapes[name] = tuple(tensor.shape)
            features.append(matrix_features(tensor[None])[0])
    if not digests:
        raise ValueError("expected a network with weights, got no tensor of floating-point numbers")
    together = sha256("".join(sorted(digests)).encode()).hexdigest()[:DIGEST_DIGITS]
    stacked = torch.stack(features) if features else torch.empty(0, NUM_FEATURES)
    return Fingerprint(together, shapes, stacked.float())


def fingerprint_many(tensors: Mapping[str, Tensor]) -> list[Fingerprint]:
    """Fingerprints of many small networks of one architecture, as [`fingerprint`] makes them.

    Args:
        tensors: `{name: [M, *shape]}`.
    """
    weights = {name: tensor.detach() for name, tensor in tensors.items() if _is_weights(tensor)}
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
    """Measures of matrices that neither permutations nor positive scales of rows and columns change.

    A matrix is balanced first: its rows and columns are scaled such that all have mean square 1, which can be done in
    one way only (Sinkhorn 1967). Then the mean and the mean absolute value of every row, every column and every
    position of a kernel are taken; their quantiles are the features. They are divided by what they vary by in a
    matrix of independent values, so that features of independent networks differ by about 1, and those of networks
    that differ by a relative `e` by about `e`.

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
    return torch.where(values > 0, 1 / values, 1.0)  # rows and columns of zeros stay


def _is_weights(tensor: Tensor) -> bool:
    """Not counters, masks and numbers of positions."""
    return tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.int8)


def _digest(tensor: Tensor) -> str:
    """Digest of a tensor that no permutation of any of its dimensions changes.

    Every value is mapped to 64 bits at random; sums of those (modulo 2^64) over each slice of a dimension are mapped
    and summed again. Sums do not depend on an order, and integers are not rounded.
    """
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    plain = plain if plain.ndim else plain[None]
    sums = [np.zeros(size, dtype=np.uint64) for size in plain.shape]
    step = max(1, HASHED // max(1, plain[0].numel()))
    for start in range(0, len(plain), step):
        part = plain[start : start + step].double().cpu().numpy()
        part = np.where(np.isnan(part), np.nan, part) + 0.0  # one NaN, and no negative zero
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
