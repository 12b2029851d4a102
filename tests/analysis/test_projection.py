"""Points as pictures."""

import sys

import pytest
import torch

from hf_sane.analysis import _projection as projection
from hf_sane.analysis._projection import project
from hf_sane.analysis._regions import RegionMap


@pytest.fixture(scope="module")
def points():
    """Three clusters of five."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.zeros(3, 6)
    centres[1, 0], centres[2, 1] = 4, 9
    return centres.repeat_interleave(5, dim=0) + 0.3 * torch.randn(15, 6, generator=generator)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_pictures_keep_regions_apart_and_are_reproducible(method):
    """Forty networks of each kind: with a handful, t-SNE goes where rounding sends it."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(3, 6).repeat_interleave(40, dim=0)
    points = centres + 0.3 * torch.randn(120, 6, generator=generator)
    flat = project(points, method, seed=1)
    assert flat.shape == (120, 2)
    assert flat.dtype == torch.float32
    names = [name for name in "abc" for _ in range(40)]
    assert torch.equal(flat, RegionMap(points, {"label": names}).project(method, seed=1))
    assert RegionMap(flat, {"label": names}).classify("label").accuracy == 1


def test_pca_keeps_distances_of_points_in_a_plane(points):
    plane = points[:, :2] @ torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1)))[0].mT
    assert torch.allclose(
        torch.cdist(project(plane, "pca"), project(plane, "pca")), torch.cdist(plane, plane), atol=1e-3
    )


def test_umap_is_optional(monkeypatch, tmp_path, points):
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="UMAP is not installed; pip install umap-learn, or use method='tsne'"):
        project(points, "umap")
    with pytest.raises(ImportError, match=r"t-SNE requires scikit-learn: pip install 'hf_sane\[analysis\]', or use"):
        project(points, "tsne")
    monkeypatch.undo()
    (tmp_path / "umap.py").write_text(
        "class UMAP:\n"
        "    def __init__(self, n_neighbors, random_state, n_jobs):\n"
        "        self.shown = n_neighbors\n"
        "    def fit_transform(self, points):\n"
        "        return points[:, :2] * self.shown\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    assert torch.equal(project(points, "umap"), points[:, :2] * 14)


def test_choices_are_checked(points):
    with pytest.raises(ValueError, match="expected the method 'tsne', 'umap' or 'pca', got 'mds'"):
        project(points, "mds")
    for few in (points[:3], points[:, :1], points[0]):
        with pytest.raises(ValueError, match="a map needs at least 4 networks with two coordinates, got points"):
            project(few, "pca")
