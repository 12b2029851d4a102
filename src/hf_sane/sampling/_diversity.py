"""Novelty of sampled networks: distances in weight space, agreement of predictions, overlap of errors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_sane.core._distances import square_distances
from hf_sane.core._layout import Layout
from hf_sane.core._normalization import LayerStatistics
from hf_sane.networks._modules import architecture_permutations
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.records._progress import tracked
from hf_sane.sampling._generation import NetworkCodec, check_raw_tokens
from hf_sane.symmetry._matching import match_many
from hf_sane.symmetry._permutation import PermutationSpec

DISTANCES = ("nearest_training_distance", "nearest_reconstruction_distance", "pairwise_distance")
REALIGNED = 3  # nearest training networks that are aligned to each network to measure its distance


@dataclass(frozen=True, slots=True)
class WeightSpace:
    """Weights as points, without padding, in standard deviations of each layer.

    Running statistics of batch norm are left out, since they follow from the other weights and the data, and
    conditioning replaces them.

    Attributes:
        layout: Layout of the networks.
        statistics: Mean and standard deviation of each layer.
    """

    layout: Layout
    statistics: LayerStatistics

    @classmethod
    def fit(cls, layout: Layout, training_tokens: Tensor) -> "WeightSpace":
        """Fit the scales to training networks, raw tokens `[T, N, D]`.

        Raises:
            ValueError: If the tokens do not fit `layout` or are not finite.
        """
        check_raw_tokens(training_tokens, layout)
        return cls(layout, LayerStatistics.fit([(layout, training_tokens)]))

    def points(self, raw_tokens: Tensor) -> Tensor:
        """Convert raw tokens `[M, N, D]` to points `[M, F]`, in the dtype of the tokens.

        Raises:
            ValueError: If the tokens do not fit the layout or are not finite.
        """
        check_raw_tokens(raw_tokens, self.layout)
        mask = (self.token_scales() > 0).to(raw_tokens.device)
        return self.statistics.apply(raw_tokens, self.layout)[:, mask]

    def token_scales(self) -> Tensor:
        """`[N, D]` float32: standard deviation of each weight's layer; zero at padding and running statistics."""
        scales = self.layout.weight_mask.float()
        stds = self.statistics.per_layer(self.layout)
        for layer, part, (_, std) in zip(self.layout.layers, self.layout.token_slices, stds, strict=True):
            scales[part] *= 0.0 if layer.kind == "running_statistics" else std
        return scales


def rms_distances(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square difference per weight between all pairs of points.

    Args:
        first: `[S, F]`.
        second: `[T, F]`.

    Returns:
        `[S, T]` float64, exactly 0 for equal points.

    Raises:
        ValueError: If the points do not have the same number of weights.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected points [S, F] and [T, F], got {list(first.shape)} and {list(second.shape)}")
    return (square_distances(first, second) / first.shape[1]).sqrt()


def nearest_distances(candidates: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each candidate to the training network closest to it.

    Args:
        candidates: `[S, F]` points.
        training: `[T, F]` points.

    Returns:
        Distances `[S]` float64, exact, and indices `[S]` int64 of the nearest training networks.
    """
    nearest = rms_distances(candidates, training).argmin(dim=1)
    distances = [
        (a.double() - training[i].double()).square().mean().sqrt() for a, i in zip(candidates, nearest, strict=True)
    ]
    return torch.stack(distances), nearest


def pairwise_distance(points: Tensor) -> float:
    """Mean distance between different networks, points `[S, F]`, which is near zero if all samples are similar.

    Raises:
        ValueError: If there are fewer than two networks.
    """
    count = len(points)
    if count < 2:
        raise ValueError(f"expected at least two networks to measure distances between, got {count}")
    distances = rms_distances(points, points)
    return (distances.sum() / (count * (count - 1))).item()


def nearest_training_distance(
    space: WeightSpace,
    candidate_tokens: Tensor,
    training_tokens: Tensor,
    *,
    permutations: PermutationSpec | None = None,
    reference: Mapping[str, Tensor] | None = None,
    realigned: int = 0,
) -> Tensor:
    """Distance of sampled networks to the nearest training network, up to permutations of neurons.

    Networks that differ by a permutation compute the same function, so a copy of a training network must not count as
    new because its neurons are in another order. Training networks of a zoo are aligned to its reference; candidates
    are aligned to the same reference here. Both alignments are approximate: with `realigned`, the nearest few training
    networks are also aligned to each candidate directly, and the smaller distance counts (Zeng et al.,
    arXiv:2506.07998, take the minimum over permutations).

    Args:
        space: Standardised weight space, fitted on training networks.
        candidate_tokens: `[S, N, D]` raw tokens.
        training_tokens: `[T, N, D]` raw tokens of training networks, aligned to `reference`.
        permutations: Permutation spec of the architecture; no alignment if `None`.
        reference: `{name: [*shape]}` network that the zoo is aligned to; candidates are not aligned to it if `None`.
        realigned: Number of nearest training networks to align to each candidate; requires `permutations`.

    Returns:
        `[S]` float64: root mean square difference per weight, in standard deviations of its layer.

    Raises:
        ValueError: If an alignment is requested without `permutations`, or tokens do not fit.
    """
    if permutations is None and (reference is not None or realigned):
        raise ValueError("alignment requires permutations: pass permutation_spec(config)")
    if permutations is not None and reference is not None:
        candidate_tokens = align_tokens(candidate_tokens, space.layout, permutations, reference)
    candidates, training = space.points(candidate_tokens), space.points(training_tokens)
    distances, _ = nearest_distances(candidates, training)
    if not realigned or permutations is None:
        return distances
    order = rms_distances(candidates, training).argsort(dim=1)[:, :realigned]
    for i in tracked(range(len(candidates)), desc="distances", unit="network"):
        own = space.layout.state_dict(candidate_tokens[i])
        closer = space.points(align_tokens(training_tokens[order[i]], space.layout, permutations, own))
        distances[i] = torch.minimum(distances[i], nearest_distances(candidates[i : i + 1], closer)[0][0])
    return distances


def training_distances(
    codec: NetworkCodec, space: WeightSpace, networks: StackedNetworks, training_tokens: Tensor
) -> Tensor:
    """Distance of each network to the nearest training network, up to permutations of neurons where those are known.

    Args:
        codec: Layout and architecture.
        space: Fitted on the training networks.
        networks: `S` networks.
        training_tokens: `[T, N, D]` raw tokens of training networks.

    Returns:
        `[S]` float64, see [`nearest_training_distance`].
    """
    permutations = architecture_permutations(codec.config, codec.layout.tensor_names)
    return nearest_training_distance(
        space,
        codec.tokens(networks),
        training_tokens,
        permutations=permutations,
        realigned=0 if permutations is None else min(REALIGNED, len(training_tokens)),
    )


def measure_distances(
    codec: NetworkCodec,
    training_tokens: Tensor,
    methods: Mapping[str, StackedNetworks],
    *,
    linear: NetworkCodec | None = None,
) -> dict[str, dict[str, float]]:
    """Mean distances of the networks of each method to trained ones (up to permutations), and within the method.

    A code that moves every network by its reconstruction error gives samples that are far from all training networks
    and yet nothing new: they are near reconstructions. So both distances are measured.

    Args:
        codec: The SANE, layout and architecture.
        training_tokens: `[T, N, D]` raw tokens of training networks, aligned if the zoo is.
        methods: Name to networks.
        linear: The linear code, of methods that use it.

    Returns:
        `{distance: {method: mean}}` with the names of `DISTANCES`. Reconstructions are those of the training networks
        by the method's own code; without a code, they are the training networks. A single network has no distance
        within its method (NaN).
    """
    space = WeightSpace.fit(codec.layout, training_tokens)
    codes = {"sane": codec, "linear": linear}
    used = {code_of(name) for name in methods}
    rebuilt = {
        name: code.decode_tokens(code.encode(training_tokens))
        for name, code in codes.items()
        if code is not None and name in used
    }
    found: dict[str, dict[str, float]] = {name: {} for name in DISTANCES}
    for name, networks in methods.items():
        points, code = space.points(codec.tokens(networks)), code_of(name)
        nearest = training_distances(codec, space, networks, training_tokens).mean().item()
        values = (
            nearest,
            training_distances(codec, space, networks, rebuilt[code]).mean().item() if code in rebuilt else nearest,
            pairwise_distance(points) if len(points) > 1 else math.nan,
        )
        for key, value in zip(DISTANCES, values, strict=True):
            found[key][name] = value
    return found


def code_of(method: str) -> str | None:
    """The code that a method of a comparison decodes networks with: `"sane"`, `"linear"`, or none."""
    if method == "reconstructed_anchors":
        return "sane"
    return next((code for code in ("sane", "linear") if method.startswith(f"{code}_")), None)


def align_tokens(
    raw_tokens: Tensor, layout: Layout, permutations: PermutationSpec, reference: Mapping[str, Tensor]
) -> Tensor:
    """Permute the neurons of networks towards a reference, by weight matching.

    Args:
        raw_tokens: `[M, N, D]`.
        layout: Their layout.
        permutations: Permutation spec of the architecture.
        reference: `{name: [*shape]}`.

    Returns:
        `[M, N, D]`.
    """
    # Batch norm may be in the template; it is permuted, too, then left out again.
    tensors = layout.complete(layout.tensors(raw_tokens, cast=False), [len(raw_tokens)], device=raw_tokens.device)
    moved = permutations.apply(tensors, match_many(permutations, reference, tensors), batch_dims=1)
    return layout.tokens(moved, batch_dims=1)


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Share of images on which two networks predict the same class, for all pairs.

    Args:
        first: `[S, n]` int64 predicted classes.
        second: `[T, n]`, on the same images.

    Returns:
        `[S, T]` float32.

    Raises:
        ValueError: If the numbers of images differ.
    """
    _check_images(first, second)
    return torch.stack([(row == second).float().mean(dim=1) for row in first])


def error_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of the images that two networks misclassify, as intersection over union, for all pairs.

    `IoU = |W_a & W_b| / |W_a | W_b|`, high between a network and its copy even where both are accurate and agree on
    most images anyway (Zeng et al., arXiv:2506.07998, who report the maximum over training networks against accuracy).
    NaN if neither network makes an error.

    Args:
        first: `[S, n]` bool, `True` where the prediction is correct.
        second: `[T, n]` bool, on the same images.

    Returns:
        `[S, T]` float32.

    Raises:
        ValueError: If the numbers of images differ.
    """
    _check_images(first, second)
    wrong_first, wrong_second = (~first).float(), (~second).float()
    common = wrong_first @ wrong_second.T
    union = wrong_first.sum(dim=1, keepdim=True) + wrong_second.sum(dim=1) - common
    return torch.where(union > 0, common / union.clamp_min(1), torch.nan)


def _check_images(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"expected predictions [S, n] and [T, n] on the same images, got {list(first.shape)} and "
            f"{list(second.shape)}"
        )
