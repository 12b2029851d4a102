"""Distances between points with many coordinates, such as the weights of networks."""

import torch
from torch import Tensor

NEAR = 1e-8  # squared distance in squared norms, below which products of matrices are too inexact
FEATURE_CHUNK = 2**18  # coordinates per step, to limit float64 copies


def square_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distances between all pairs of points: exactly 0 for equal ones, and exact for near ones.

    `|a|^2 + |b|^2 - 2 a b` is fast, but is a difference of large numbers for near points, for which `|a - b|^2` is
    computed.

    Args:
        first: `[S, F]`.
        second: `[T, F]`.

    Returns:
        `[S, T]` float64.
    """
    total = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    sizes = torch.zeros_like(total)
    for a, b in zip(first.split(FEATURE_CHUNK, dim=1), second.split(FEATURE_CHUNK, dim=1), strict=True):
        centre = b.double().mean(dim=0)  # small numbers lose less precision in the product
        a, b = a.double() - centre, b.double() - centre
        size = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)
        total += size - 2 * a @ b.T
        sizes += size
    near = total <= NEAR * sizes
    for i in near.any(dim=1).nonzero().flatten().tolist():
        total[i, near[i]] = _to_one(first[i], second[near[i]])
    return total


def _to_one(point: Tensor, others: Tensor) -> Tensor:
    found = torch.zeros(len(others), dtype=torch.float64, device=others.device)
    for a, b in zip(point.split(FEATURE_CHUNK), others.split(FEATURE_CHUNK, dim=1), strict=True):
        found += (a.double() - b.double()).square().sum(dim=1)
    return found
