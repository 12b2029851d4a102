"""Batch-norm conditioning: running statistics for sampled or averaged weights, re-estimated from data."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._stacked import StackedNetworks, empty_model, run_stacked, tied_tensors, with_tensors

NUM_BATCHES, BATCH_SIZE = 200, 32  # of the released code


def condition_batch_norm(
    networks: StackedNetworks,
    images: Tensor,
    *,
    num_batches: int = NUM_BATCHES,
    batch_size: int = BATCH_SIZE,
    networks_per_step: int = 16,
    reset: bool = True,
    generator: torch.Generator | None = None,
) -> StackedNetworks:
    """Re-estimate the running statistics of many networks from images, without labels or gradients.

    Decoded running statistics are the least reliable part of a sampled network, and they can be measured: forward
    passes in training mode, statistics averaged over batches (arXiv:2406.09997, appendix; 200 batches of 32).
    Deviations: the released code keeps PyTorch's momentum and what was there before; here statistics are reset first
    and every batch counts the same (the cumulative average of `BatchNorm2d(momentum=None)`).

    Args:
        networks: To condition; not changed. Without batch norm they come back as they are.
        images: `[n, C, H, W]`, training or validation images.
        num_batches: Batches drawn, >= 1; images come in random order, again when all have been seen.
        batch_size: Images per batch, >= 2; at most all of them.
        networks_per_step: Networks that run together.
        reset: Whether to start from nothing; otherwise from the statistics that are there, with the momentum of the
            architecture, as the released code does: after 200 batches at 0.1 little is left of them, after few a lot.
        generator: CPU source of randomness; the global one when `None`.

    Returns:
        Networks that share all tensors but running statistics and their counters.

    Raises:
        ValueError: For `num_batches < 1` or batches of fewer than two images.
    """
    batches = list(_batch_indices(len(images), num_batches, batch_size, generator))
    skeleton = empty_model(networks.config) if isinstance(networks.config, ZooConfig) else networks.config
    norms = _norms(skeleton)
    if not norms:
        return networks
    names = [f"{name}.{key}" for name in norms for key in ("running_mean", "running_var", "num_batches_tracked")]
    fresh = {name: torch.empty_like(networks.tensors[name]) for name in names}
    run = with_tensors(skeleton)  # updates running statistics among the tensors in place
    tied = {name: first for name, first in tied_tensors(skeleton).items() if first in fresh}
    with _only_norms_train(skeleton, norms.values()), torch.no_grad():
        for start in range(0, networks.num_models, networks_per_step):
            part = {name: tensor[start : start + networks_per_step] for name, tensor in networks.tensors.items()}
            for name in names:
                part[name] = torch.full_like(part[name], name.endswith("var")) if reset else part[name].clone()
            for count, index in enumerate(batches, start=1):
                for norm in norms.values() if reset else ():
                    norm.momentum = 1 / count  # a mean over all batches so far; None would look at tensors, under vmap
                run_stacked(skeleton, run, part, images[index.to(images.device)], None)
            for name in names:
                fresh[name][start : start + networks_per_step] = part[name]
    fresh |= {name: fresh[first] for name, first in tied.items()}
    return StackedNetworks(networks.config, {**networks.tensors, **fresh})


def condition_module(
    module: nn.Module,
    images: Tensor,
    *,
    num_batches: int = NUM_BATCHES,
    batch_size: int = BATCH_SIZE,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Re-estimate the running statistics of one module, in place; see [`condition_batch_norm`].

    Only its batch norms run in training mode, so dropout stays off.

    Args:
        module: Called as `module(images)`.
        images: `[n, C, H, W]`.
        num_batches: Batches drawn, >= 1.
        batch_size: Images per batch, >= 2.
        generator: CPU source of randomness; the global one when `None`.

    Returns:
        `module`, in the mode it was in.

    Raises:
        ValueError: For `num_batches < 1` or batches of fewer than two images.
    """
    batches = _batch_indices(len(images), num_batches, batch_size, generator)
    norms = list(_norms(module).values())
    with _only_norms_train(module, norms), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for index in batches if norms else ():
            module(images[index.to(images.device)])
    return module


@contextmanager
def _only_norms_train(module: nn.Module, norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Batch norms in training mode, everything else (dropout) not; modes and momenta are put back."""
    norms = list(norms)
    momenta = [norm.momentum for norm in norms]
    try:
        with modes_kept(module):
            module.eval()
            for norm in norms:
                norm.train()
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms with running statistics, by name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    }


def _batch_indices(
    num_images: int, num_batches: int, batch_size: int, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Random batches without repetition within a pass over the images; checked at once."""
    size = min(batch_size, num_images)
    if num_batches < 1 or size < 2:
        raise ValueError(
            f"batch statistics need at least one batch of at least two images, got {num_batches} of {batch_size} from "
            f"{num_images} images"
        )
    per_pass = num_images // size
    orders = [torch.randperm(num_images, generator=generator) for _ in range(-(-num_batches // per_pass))]
    batches = [order[i * size : (i + 1) * size] for order in orders for i in range(per_pass)]
    return iter(batches[:num_batches])
