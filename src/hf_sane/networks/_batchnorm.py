"""Batch-norm conditioning: re-estimate running statistics of sampled or averaged networks from data."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._stacked import StackedNetworks, empty_model, run_stacked, running_on, tied_tensors, with_tensors

NUM_BATCHES, BATCH_SIZE = 200, 32  # as in the released code


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

    Decoded running statistics are the least reliable part of a sampled network, but they can be measured by forward
    passes in training mode, averaged over batches (arXiv:2406.09997, appendix; 200 batches of 32). Deviation: the
    released code keeps PyTorch's momentum and the previous statistics; here statistics are reset first and all batches
    have equal weight (the cumulative average of `BatchNorm2d(momentum=None)`).

    Args:
        networks: Networks to condition; not changed. Returned unchanged if they have no batch norm.
        images: `[n, C, H, W]`, training or validation images.
        num_batches: Number of batches, >= 1; images are in random order, and repeat once all have been seen.
        batch_size: Images per batch, >= 2; capped at the number of images.
        networks_per_step: Number of networks to run together.
        reset: Whether to reset the statistics first. Otherwise they are updated with the momentum of the architecture,
            as in the released code: after 200 batches with momentum 0.1 little of the old values is left, but after a
            few batches a lot.
        generator: CPU source of randomness; the global one if `None`.

    Returns:
        Networks that share all tensors with the given ones except running statistics and their counters.

    Raises:
        ValueError: If `num_batches < 1`, batches have fewer than two images, or networks cannot run on the images.
    """
    batches = list(_batch_indices(len(images), num_batches, batch_size, generator))
    skeleton = empty_model(networks.config) if isinstance(networks.config, ZooConfig) else networks.config
    norms = _norms(skeleton)
    if not norms:
        return networks
    networks.check(images, None, data="the images")
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
                    # a mean over all batches so far; None would inspect tensors, which vmap forbids
                    norm.momentum = 1 / count
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

    Only its batch norms run in training mode, so dropout remains off.

    Args:
        module: Called as `module(images)`.
        images: `[n, C, H, W]`.
        num_batches: Number of batches, >= 1.
        batch_size: Images per batch, >= 2.
        generator: CPU source of randomness; the global one if `None`.

    Returns:
        `module`, in its previous mode.

    Raises:
        ValueError: If `num_batches < 1`, batches have fewer than two images, or networks cannot run on the images.
    """
    batches = _batch_indices(len(images), num_batches, batch_size, generator)
    norms = list(_norms(module).values())
    with _only_norms_train(module, norms), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with running_on(images, network=type(module).__name__, data="the images"):
            for index in batches if norms else ():
                module(images[index.to(images.device)])
    return module


@contextmanager
def _only_norms_train(module: nn.Module, norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Context with only the batch norms in training mode; modes and momenta are restored afterwards."""
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
    """Random batches without repetition within a pass over the images; arguments are checked immediately."""
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
