"""Projection of points to two dimensions."""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Projection = Literal["tsne", "umap", "pca"]
MIN_POINTS = 4
NEIGHBOURS = 15


def project(points: Tensor, method: Projection = "tsne", *, seed: int = 0) -> Tensor:
    """Project points to the plane for plots.

    t-SNE and UMAP preserve neighbourhoods; large distances and sizes of clusters are not meaningful.

    Args:
        points: `[M, P]` float, finite.
        method: `"tsne"` (scikit-learn), `"umap"` (umap-learn, not among the dependencies) or `"pca"`.
        seed: Random seed of the random start.

    Returns:
        `[M, 2]` float32.

    Raises:
        ValueError: If the method is unknown, or there are fewer than four points or two dimensions.
        ImportError: If scikit-learn or UMAP is required but not installed.
    """
    if method not in ("tsne", "umap", "pca"):
        raise ValueError(f"expected the method 'tsne', 'umap' or 'pca', got {method!r}")
    if points.ndim != 2 or len(points) < MIN_POINTS or points.shape[1] < 2:
        raise ValueError(
            f"a map needs at least {MIN_POINTS} networks with two coordinates, got points {list(points.shape)}"
        )
    if method == "pca":
        left, values, _ = torch.linalg.svd(points.double() - points.double().mean(dim=0), full_matrices=False)
        return (left[:, :2] * values[:2]).float()
    values = points.detach().float().cpu().numpy()
    if method == "tsne":
        if find_spec("sklearn") is None:
            raise ImportError("t-SNE requires scikit-learn: pip install 'hf_sane[analysis]', or use method='pca'")
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        return torch.from_numpy(
            TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)
        ).float()
    if find_spec("umap") is None:
        raise ImportError("UMAP is not installed; pip install umap-learn, or use method='tsne'")
    from umap import UMAP

    neighbours = min(NEIGHBOURS, len(points) - 1)
    return torch.from_numpy(UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(values)).float()
