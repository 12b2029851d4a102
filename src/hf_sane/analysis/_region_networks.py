"""Convert between networks and points in weight space or latent space."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_sane.core._finite import check_sizes
from hf_sane.core._types import StateDict
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.symmetry._matching import match_many
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

SHOWN = 3  # tensors to name in an error


def stack_networks(networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of networks of one architecture.

    Args:
        networks: State dicts by name; errors use the names.

    Returns:
        A copy `{tensor: [M, *shape]}`, in the order of the first network.

    Raises:
        ValueError: If there are fewer than two networks, or tensors or shapes differ.
    """
    if len(networks) < 2:
        raise ValueError(f"expected at least two networks, got {list(networks)}")
    first, *others = networks
    shapes = {name: tuple(tensor.shape) for name, tensor in networks[first].items()}
    for other in others:
        found = {name: tuple(tensor.shape) for name, tensor in networks[other].items()}
        if foreign := sorted(shapes.keys() ^ found.keys()):
            raise ValueError(
                f"{first} and {other} are of different architectures: only one of them has {foreign[:SHOWN]}; pass "
                "networks of one architecture"
            )
        if differing := [f"{name} {shapes[name]} and {found[name]}" for name in shapes if shapes[name] != found[name]]:
            raise ValueError(
                f"shapes of {first} and {other} differ: {'; '.join(differing[:SHOWN])}; pass networks of one "
                "architecture"
            )
    return {name: torch.stack([network[name] for network in networks.values()]) for name in shapes}


def align_networks(
    tensors: Mapping[str, Tensor], spec: PermutationSpec, reference: StateDict | None = None
) -> dict[str, Tensor]:
    """Permute the channels of networks `{name: [M, *shape]}` to match one of them, by weight matching.

    Args:
        tensors: Tensors of all networks.
        spec: Permutation symmetries.
        reference: Network to align to; the first one if `None`.

    Raises:
        KeyError, ValueError: As in [`match_many`].
    """
    fixed = reference or {name: tensor[0] for name, tensor in tensors.items()}
    return spec.apply(tensors, match_many(spec, fixed, tensors), batch_dims=1)


def flatten_networks(tensors: Mapping[str, Tensor]) -> Tensor:
    """Flatten floating-point tensors `{name: [M, *shape]}` to points `[M, P]`, in the order of the tensors.

    Raises:
        ValueError: If there are none, or they hold different numbers of networks.
    """
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        raise ValueError(f"expected floating-point tensors, got {list(tensors)[:SHOWN]}; pass tensors of weights")
    counts = {name: len(tensor) for name, tensor in floating.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected tensors [M, *shape] of the same number of networks, got {counts}")
    return torch.cat([tensor.flatten(1) for tensor in floating.values()], dim=1)


def unflatten_networks(points: Tensor, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo [`flatten_networks`].

    Args:
        points: `[K, P]`.
        template: `{name: [*shape]}` of one network, which provides shapes, dtypes and tensors that are not
            floating-point.

    Returns:
        `{name: [K, *shape]}`.

    Raises:
        ValueError: If `P` is not the number of floating-point scalars of the template.
    """
    sizes = [tensor.numel() for tensor in template.values() if tensor.is_floating_point()]
    if points.ndim != 2 or points.shape[1] != sum(sizes):
        raise ValueError(f"expected points [K, {sum(sizes)}] for these tensors, got {list(points.shape)}")
    parts = iter(points.split(sizes, dim=1))
    return {
        name: next(parts).reshape(-1, *tensor.shape).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.expand(len(points), *tensor.shape).clone()
        for name, tensor in template.items()
    }


def latent_points(
    model: WeightAutoencoder,
    extractor: SANEFeatureExtractor,
    tensors: Mapping[str, Tensor],
    *,
    halo_size: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Represent networks by the concatenated latents of all their tokens.

    Args:
        model: SANE autoencoder.
        extractor: Its weight tokenizer, fitted on the architecture.
        tensors: `{name: [M, *shape]}`, aligned like the networks that SANE was trained on.
        halo_size: Context tokens on each side of a window.
        batch_size: Number of networks, and of windows, at a time.

    Returns:
        `[M, N * Z]` float32.

    Raises:
        KeyError: If the extractor was fitted on another architecture.
        ValueError: If the extractor was not fitted, a position is outside the model's tables, or weights are not
            finite or too large for single precision.
    """
    layout = extractor.lay_out({name: tensor[0] for name, tensor in tensors.items()})
    tokens = extractor.normalize(layout.tokens(tensors, batch_dims=1), layout).float()
    check_sizes(tokens, layout)
    parts = [
        model.encode_sequences(part, layout.positions, halo_size=halo_size, batch_size=batch_size)
        for part in tokens.split(batch_size)
    ]
    return torch.cat(parts).flatten(1)
