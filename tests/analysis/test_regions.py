import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from hf_sane.analysis._region_results import RegionScores
from hf_sane.analysis._regions import RegionMap
from hf_sane.architectures.presets import cnn_digits
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.symmetry._networks import permutation_spec


def clusters(spread=0.3, count=5, dims=6):
    """Three data sets of two tasks: `a` and `b` are near each other, `c` is far."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.zeros(3, dims)
    centres[1, 0], centres[2, 1] = 2, 9
    points = torch.cat([centre + spread * torch.randn(count, dims, generator=generator) for centre in centres])
    names = [name for name in "abc" for _ in range(count)]
    return RegionMap(points, {"data set": names, "task": ["near" if name in "ab" else "far" for name in names]})


@pytest.fixture
def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_against_scipy(metric):
    found = clusters()
    assert np.allclose(found.distances(metric), cdist(found.points, found.points, metric), atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equal_networks_are_at_distance_zero(metric):
    points = clusters().points
    found = RegionMap(points.repeat(2, 1), {"copy": ["original", "copy"] * len(points)}).distances(metric)
    assert (found.diagonal() == 0).all()
    assert (found.diagonal(len(points)) == 0).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("level", ["data set", "task"])
def test_distances_within_and_between_against_loops(level, seeded):
    found = clusters()
    labels, distances = found.labels[level], cdist(found.points, found.points)
    within, between, each = [], [], {}
    for i in range(15):
        for j in range(15):
            if i != j:
                (within if labels[i] == labels[j] else between).append(distances[i, j])
                if labels[i] == labels[j]:
                    each.setdefault(labels[i], []).append(distances[i, j])
    result = found.group_distances(level, num_shuffles=99, generator=seeded)
    assert result.mean_within == pytest.approx(np.mean(within), rel=1e-5)
    assert result.mean_between == pytest.approx(np.mean(between), rel=1e-5)
    assert result.ratio == pytest.approx(np.mean(within) / np.mean(between), rel=1e-5)
    assert result.within == pytest.approx({name: np.mean(values) for name, values in each.items()}, rel=1e-5)
    labels = np.array(labels)
    for one in set(labels):
        for other in set(labels) - {one}:
            expected = distances[labels == one][:, labels == other].mean()
            assert result.table[one][other] == pytest.approx(expected, rel=1e-5)
    assert result.p_value == 0.01
    assert result.to_dict()["table"] == result.table


def test_p_values_are_shares_of_relabellings():
    """Four networks on a line, two labels: of the three ways to pair them up, one is as tight as this."""
    found = RegionMap(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), {"label": ["a", "a", "b", "b"]})
    result = found.group_distances("label", num_shuffles=3000, generator=torch.Generator().manual_seed(0))
    assert result.p_value == pytest.approx(1 / 3, abs=0.04)


def test_labels_without_meaning_have_no_regions(seeded):
    points = torch.randn(40, 8, generator=seeded)
    found = RegionMap(points, {"label": ["a", "b"] * 20})
    result = found.group_distances("label", num_shuffles=199, generator=seeded)
    assert 0.9 < result.ratio < 1.1
    assert result.p_value > 0.05
    assert found.classify("label").accuracy < 0.75


def test_a_label_of_one_network_has_no_distance_within(seeded):
    found = RegionMap(torch.randn(3, 2, generator=seeded), {"label": ["a", "a", "b"]})
    result = found.group_distances("label", num_shuffles=1)
    assert result.within["a"] > 0
    assert np.isnan(result.within["b"])


@pytest.mark.parametrize("rule", ["centroid", "neighbour"])
def test_nearest_region_against_loops(rule):
    found = clusters(spread=2.0)
    points, labels = found.points.double().numpy(), np.array(found.labels["data set"])
    expected = {name: dict.fromkeys("abc", 0) for name in "abc"}
    for i in range(15):
        others = np.arange(15) != i
        if rule == "centroid":
            far = {name: np.linalg.norm(points[others & (labels == name)].mean(0) - points[i]) for name in "abc"}
            guess = min(far, key=far.get)
        else:
            guess = labels[others][np.linalg.norm(points[others] - points[i], axis=1).argmin()]
        expected[labels[i]][guess] += 1
    result = found.classify("data set", rule=rule)
    assert result.confusion == expected
    assert result.accuracy == pytest.approx(sum(expected[name][name] for name in "abc") / 15)
    assert result.chance == pytest.approx(1 / 3)
    assert 1 / 3 < result.accuracy < 1


def test_networks_of_one_run_are_never_compared():
    """Two epochs of a run are twins: with them in the race everything is found, without them nothing."""
    generator = torch.Generator().manual_seed(3)
    starts = torch.randn(8, 20, generator=generator)
    points = torch.cat([starts, starts + 0.01])
    labels = {"label": ["a", "b"] * 8}
    runs = [str(index) for index in range(8)] * 2
    assert RegionMap(points, labels).classify("label", rule="neighbour").accuracy == 1
    assert RegionMap(points, labels, runs).classify("label", rule="neighbour").accuracy < 0.9
    apart = RegionMap(points, labels, runs).group_distances("label", num_shuffles=9)
    together = RegionMap(points, labels).group_distances("label", num_shuffles=9)
    assert apart.mean_within > together.mean_within


@pytest.mark.parametrize("kind", ["line", "hull"])
def test_points_inside_a_region_are_inside(kind, seeded):
    found = clusters(dims=4)
    drawn = found.interior("data set", "b", 40, kind=kind, generator=seeded)
    corners = found.points[5:10].double().numpy()
    hull = ConvexHull(corners)
    assert (hull.equations[:, :4] @ drawn.double().numpy().T + hull.equations[:, 4:] < 1e-6).all()
    pairs = [(a, b) for a in range(5) for b in range(a)]
    on_line = 0
    for point in drawn.double().numpy():
        ways = [np.linalg.norm(corners[a] - point) + np.linalg.norm(corners[b] - point) for a, b in pairs]
        lengths = [np.linalg.norm(corners[a] - corners[b]) for a, b in pairs]
        on_line += min(np.subtract(ways, lengths)) < 1e-5
    assert on_line == (40 if kind == "line" else 0)
    assert drawn.unique(dim=0).shape[0] == 40


def test_scores_of_a_region(seeded):
    found = clusters()
    target = found.points[5:10].mean(dim=0)
    scores = found.score_region("data set", "b", lambda points: -(points - target).norm(dim=1), generator=seeded)
    assert [len(part) for part in (scores.corners, scores.line, scores.hull, scores.outside)] == [5, 20, 20, 10]
    assert scores.hull.mean() > scores.corners.mean() > scores.outside.mean()
    assert scores.better_than_outside("hull") == 1 > scores.better_than_corners("corners") == 0.5
    alone = RegionMap(found.points[5:10], {"data set": ["b"] * 5})
    lonely = alone.score_region("data set", "b", lambda points: points[:, 0])
    assert len(lonely.outside) == 0
    assert np.isnan(lonely.better_than_outside("line"))
    assert lonely.to_dict()["outside"] == {"count": 0}


def test_chances_against_loops(seeded):
    parts = [torch.randint(0, 4, (count,), generator=seeded).float() for count in (5, 6, 7, 8)]
    scores = RegionScores(*parts)
    for place, inside in zip(("corners", "line", "hull"), parts[:3], strict=True):
        wins = [(a > b).float() + 0.5 * (a == b).float() for a in inside for b in parts[3]]
        assert scores.better_than_outside(place) == pytest.approx(float(sum(wins)) / len(wins))
    assert scores.to_dict()["line"] == {
        "count": 6,
        "mean": pytest.approx(parts[1].mean().item()),
        "min": parts[1].min().item(),
        "max": parts[1].max().item(),
    }


@pytest.mark.parametrize("rule", ["centroid", "neighbour"])
def test_other_networks_find_their_region(rule, seeded):
    found = clusters()
    near = found.points[[0, 7, 12]] + 0.05 * torch.randn(3, 6, generator=seeded)
    assert found.nearest(near, "data set", rule=rule) == ["a", "b", "c"]
    assert found.nearest(near, "task", rule=rule) == ["near", "near", "far"]


def test_lines_lead_from_one_run_to_another(seeded):
    """Two epochs of a run and one of another: no line stays within the run."""
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    found = RegionMap(points, {"label": ["a"] * 3}, ["x", "x", "y"])
    drawn = found.interior("label", "a", 60, kind="line", generator=seeded)
    assert (drawn[:, 0] > 0).all()
    alone = RegionMap(points[:2], {"label": ["a"] * 2}, ["x", "x"])
    with pytest.raises(ValueError, match="at least two networks with label 'a', of different runs, got 2"):
        alone.interior("label", "a", 3, kind="line")


def test_alignment_brings_permuted_networks_into_one_region(seeded):
    """Six orders of channels of two networks: by weights they are six places, aligned they are two."""
    networks = StackedNetworks.initialize(cnn_digits(), [0, 1])
    spec = permutation_spec(networks.config)
    states = [
        spec.apply(networks.state_dict(index % 2), spec.random(generator=seeded)) if index else networks.state_dict(0)
        for index in range(6)
    ]
    tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    labels = {"function": ["first", "second"] * 3}
    plain = RegionMap.from_networks(tensors, labels)
    aligned = RegionMap.from_networks(tensors, labels, spec=spec)
    assert plain.points.shape == aligned.points.shape == (6, 1108)
    assert aligned.group_distances("function", num_shuffles=9).within["first"] < 1e-5
    assert plain.group_distances("function", num_shuffles=9).within["first"] > 1
    given = RegionMap.from_networks(tensors, labels, spec=spec, reference=states[2])
    torch.testing.assert_close(given.points[2], plain.points[2])


def test_integers_are_no_coordinates():
    tensors = {"weight": torch.randn(2, 3), "counter": torch.tensor([1, 2])}
    assert RegionMap.from_networks(tensors, {"label": ["a", "b"]}).points.shape == (2, 3)


LABELS = {"label": ["a", "a", "b", "b"]}


@pytest.mark.parametrize("points", [torch.zeros(1, 3), torch.zeros(4), torch.zeros(2, 2, 2), torch.zeros(3, 0)])
def test_a_map_needs_points(points):
    with pytest.raises(ValueError, match="at least two networks as points"):
        RegionMap(points, {"label": ["a"] * len(points)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_networks_that_are_not_finite_are_named(value):
    points = torch.zeros(4, 3)
    points[2, 1] = value
    with pytest.raises(ValueError, match=r"networks \[2\] are not finite"):
        RegionMap(points, LABELS)


@pytest.mark.parametrize(("labels", "runs"), [({}, ()), ({"label": ["a"]}, ()), (LABELS, ("x",))])
def test_every_network_needs_its_labels(labels, runs):
    with pytest.raises(ValueError, match="expected labels of 4 networks on at least one level, got"):
        RegionMap(torch.zeros(4, 3), labels, runs)


def test_choices_are_checked(seeded):
    found = RegionMap(torch.randn(4, 3, generator=seeded), LABELS)
    with pytest.raises(KeyError, match="no level 'task'; this map has 'label'"):
        found.classify("task")
    with pytest.raises(ValueError, match="expected the metric 'euclidean' or 'cosine', got 'l1'"):
        found.distances("l1")
    with pytest.raises(ValueError, match="a network of zeros has no direction"):
        RegionMap(torch.eye(4, 3), LABELS).distances("cosine")
    with pytest.raises(ValueError, match="expected the rule 'centroid' or 'neighbour', got 'svm'"):
        found.classify("label", rule="svm")
    with pytest.raises(ValueError, match="expected 'line' or 'hull', got 'ball'"):
        found.interior("label", "a", 3, kind="ball")
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        found.interior("label", "a", 0, kind="line")
    for wrong in (torch.zeros(2, 4), torch.zeros(3), torch.full((1, 3), torch.nan)):
        with pytest.raises(ValueError, match=r"expected finite points \[K, 3\], got"):
            found.nearest(wrong, "label")
    with pytest.raises(ValueError, match="num_shuffles must be at least 1, got 0"):
        found.group_distances("label", num_shuffles=0)


def test_too_few_networks_are_refused(seeded):
    points = torch.randn(4, 3, generator=seeded)
    lonely = RegionMap(points, {"label": ["a", "a", "a", "b"], "same": ["x"] * 4, "own": list("abcd")})
    with pytest.raises(
        ValueError, match=r"expected two training runs for every label of level 'label', got one for b"
    ):
        lonely.classify("label")
    for level in ("same", "own"):
        with pytest.raises(
            ValueError, match=f"level '{level}' needs at least two networks with one label and two labels"
        ):
            lonely.group_distances(level)
    for label in ("b", "c"):
        with pytest.raises(
            ValueError, match=f"expected at least two networks with label '{label}', of different runs, got"
        ):
            lonely.interior("label", label, 3, kind="line")
    with pytest.raises(ValueError, match="level 'same' has only the label 'x'; nearest regions require two labels"):
        lonely.classify("same")
    with pytest.raises(ValueError, match="got one for r0, r1, r2, r3, r4 and 2 more"):
        RegionMap(torch.randn(7, 3), {"run": [f"r{i}" for i in range(7)]}).classify("run")


def test_labels_must_belong_to_runs_to_be_shuffled(seeded):
    found = RegionMap(torch.randn(4, 3, generator=seeded), {"epoch": ["1", "2", "1", "2"]}, ["x", "x", "y", "y"])
    with pytest.raises(ValueError, match="training runs have several labels on level 'epoch'"):
        found.group_distances("epoch")
