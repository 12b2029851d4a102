"""Gaussian kernel density estimates over latents of anchor models, with exact sampling, modes and bandwidth rules."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

SamplingMode = Literal["joint", "token", "scalar"]
BandwidthRule = Literal["scott", "silverman"]

# On the CPU, noise, centres and indices of one step fit into a core's cache, so that memory is accessed only once for
# each scalar of the result; 2^15 is also the size up to which PyTorch runs an operation on one thread. Each block of
# steps has its own random stream, so that results depend on these numbers but not on the number of threads.
CPU_STEP_SCALARS = 2**15
OTHER_STEP_SCALARS = 2**26
STEPS_PER_BLOCK = 32
NEAR_STEPS = 4  # size, in steps, of the copied coordinates of all anchors in mode `scalar`


def sample_latents(
    anchors: Tensor,
    num_samples: int,
    *,
    bandwidth: float | Tensor | BandwidthRule,
    mode: SamplingMode = "joint",
    anchor_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw latents of new models from a Gaussian kernel density estimate around anchor models.

    `z = z_a + h * eps` with `a ~ Categorical(w)`, `eps ~ N(0, I)`: exact sampling from
    `p(z) = sum_a w_a N(z; z_a, h^2 I)` (arXiv:2406.09997, section 3.2; density per embedding dimension:
    arXiv:2209.14733). The mode determines which coordinates share one draw of the anchor `a`:

    - `"joint"`: all coordinates of a model. Samples scatter around whole anchors.
    - `"token"`: the coordinates of one token. Tokens of a sample can come from different anchors.
    - `"scalar"`: none; every coordinate has its own draw.

    Noise is independent between all coordinates in every mode. Deviation: the released code fits one estimator per
    token (or scalar) and draws from each with the same fixed seed, so that all tokens of a sample have the same anchor
    and the same offset; here, draws are independent, as in the equation.

    Args:
        anchors: `[A, N, Z]` latents of `A` anchor models, floating point.
        num_samples: Number of models to draw, `S` >= 1.
        bandwidth: Kernel standard deviation `h` in latent units: one number >= 0 (0 resamples the anchors), a tensor
            that broadcasts to `[N, Z]`, such as `[Z]`, or a rule, see [`bandwidth_by_rule`].
        mode: `"joint"`, `"token"` or `"scalar"`.
        anchor_weights: `[A]` non-negative mixture weights `w`, up to a factor, such as scores of the anchors in
            bootstrapping; equal if `None`.
        generator: Source of randomness on `anchors.device`; the global one if `None`.

    Returns:
        `[S, N, Z]`, dtype and device of `anchors`.

    Raises:
        ValueError: If the shape or dtype of the anchors is wrong, `num_samples < 1`, the mode or rule is unknown, the
            bandwidth is negative or not finite, or weights are no distribution over the anchors.
    """
    _check_anchors(anchors)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if mode not in ("joint", "token", "scalar"):
        raise ValueError(f"expected mode 'joint', 'token' or 'scalar', got {mode!r}")
    num_anchors, num_tokens, latent_dim = anchors.shape
    scale = _bandwidth(bandwidth, anchors, mode)
    weights = None if anchor_weights is None else _checked_weights(anchor_weights, anchors)
    anchors = anchors.detach().contiguous()
    seed = int(torch.randint(2**62, (), generator=generator, device=anchors.device))
    samples = torch.empty(num_samples, num_tokens, latent_dim, dtype=anchors.dtype, device=anchors.device)
    step_scalars = CPU_STEP_SCALARS if anchors.device.type == "cpu" else OTHER_STEP_SCALARS
    step_rows = max(1, step_scalars // latent_dim)
    per_model = -(-num_tokens // step_rows)  # steps

    def fill_models(block: range, stream: torch.Generator) -> None:
        """Fill stretches of one anchor in place, for mode `joint`."""
        for index in block:
            sample, step = divmod(index, per_model)
            part = slice(step * step_rows, (step + 1) * step_rows)
            noise = samples[sample, part].normal_(generator=stream)
            _add_scaled(anchors[models[sample], part], noise, scale, part, out=noise)

    def fill_rows(block: range, stream: torch.Generator) -> None:
        """Fill consecutive rows of `[S * N, Z]` in place, for mode `token`."""
        token = torch.arange(block.start, block.stop, device=anchors.device) % num_tokens
        pick = _draw(num_anchors, token.shape, weights, stream)
        noises = samples.view(-1, latent_dim)[block.start : block.stop].split(block.step)
        sources = (pick * num_tokens + token).split(block.step)
        for noise, source, where in zip(noises, sources, token.split(block.step), strict=True):
            centres = anchors.view(-1, latent_dim).index_select(0, source)
            _add_scaled(centres, noise.normal_(generator=stream), scale, where, out=noise)

    def fill_tokens(block: range, stream: torch.Generator) -> None:
        """Fill a few tokens at a time, since each scalar may come from any anchor, for mode `scalar`."""
        for start in block:
            part = slice(start, min(start + block.step, block.stop))
            near = anchors[:, part].reshape(-1)  # a copy of [A, n, Z], small enough for the cache
            column = torch.arange(len(near) // num_anchors, device=anchors.device)
            for out in samples[:, part].split(max(1, step_scalars // len(column))):
                pick = _draw(num_anchors, (len(out), len(column)), weights, stream)
                centres = near.index_select(0, pick.mul_(len(column)).add_(column).view(-1)).view(out.shape)
                _add_scaled(centres, torch.empty_like(centres).normal_(generator=stream), scale, part, out=out)

    if mode == "joint":
        models = _draw(num_anchors, (num_samples,), weights, _stream(seed, anchors.device)).tolist()
        _run_blocks(fill_models, num_samples * per_model, 1, seed, anchors.device)
    elif mode == "token":
        _run_blocks(fill_rows, num_samples * num_tokens, step_rows, seed, anchors.device)
    else:
        step = max(1, NEAR_STEPS * step_scalars // (num_anchors * latent_dim))
        _run_blocks(fill_tokens, num_tokens, step, seed, anchors.device)
    return samples


def bandwidth_by_rule(anchors: Tensor, rule: BandwidthRule, *, mode: SamplingMode = "joint") -> Tensor:
    """Kernel standard deviations by a rule of thumb, from the spread of the anchors.

    `h = sigma * (c * A)^(-1 / (d + 4))` per token and latent dimension, where `sigma` is the standard deviation over
    anchors, `c = 1` (Scott 1992) or `c = (d + 2) / 4` (Silverman 1986), and `d` is the dimension of the density:
    `N * Z` for `"joint"`, `Z` for `"token"`, 1 for `"scalar"`. Both rules assume nearly normal data. In mode
    `"joint"`, `d` is so large that `h` is about `sigma`, which is far too wide for most zoos; choose the bandwidth by
    validation accuracy instead.

    Args:
        anchors: `[A, N, Z]`, at least two anchors.
        rule: `"scott"` or `"silverman"`.
        mode: Which coordinates form one density.

    Returns:
        `[N, Z]`, dtype and device of `anchors`; >= 0.

    Raises:
        ValueError: If the rule or mode is unknown, or there are fewer than two anchors.
    """
    _check_anchors(anchors)
    if rule not in ("scott", "silverman"):
        raise ValueError(f"expected a bandwidth rule 'scott' or 'silverman', got {rule!r}")
    num_anchors, num_tokens, latent_dim = anchors.shape
    dimensions = {"joint": num_tokens * latent_dim, "token": latent_dim, "scalar": 1}
    if mode not in dimensions:
        raise ValueError(f"expected mode 'joint', 'token' or 'scalar', got {mode!r}")
    if num_anchors < 2:
        raise ValueError(f"a bandwidth rule requires at least 2 anchors to measure their spread, got {num_anchors}")
    d = dimensions[mode]
    factor = (num_anchors if rule == "scott" else num_anchors * (d + 2) / 4) ** (-1 / (d + 4))
    return factor * anchors.std(dim=0)


def _check_anchors(anchors: Tensor) -> None:
    if anchors.ndim != 3 or not anchors.is_floating_point() or anchors.numel() == 0:
        raise ValueError(f"expected floating-point anchors [A, N, Z], got {anchors.dtype} {list(anchors.shape)}")


def _bandwidth(bandwidth: float | Tensor | BandwidthRule, anchors: Tensor, mode: SamplingMode) -> float | Tensor:
    """Bandwidth as one number or `[N, Z]`."""
    if isinstance(bandwidth, str):
        return bandwidth_by_rule(anchors, bandwidth, mode=mode)
    if not isinstance(bandwidth, Tensor):
        if not 0 <= bandwidth < float("inf"):
            raise ValueError(f"bandwidth must be a finite number >= 0, got {bandwidth}")
        return float(bandwidth)
    fits = zip(reversed(bandwidth.shape), reversed(anchors.shape[1:]), strict=False)
    if bandwidth.ndim > 2 or any(size not in (1, wanted) for size, wanted in fits):
        raise ValueError(
            f"bandwidth must broadcast to [tokens, latent_dim] = {list(anchors.shape[1:])}, got "
            f"{list(bandwidth.shape)}"
        )
    if not (bandwidth.isfinite() & (bandwidth >= 0)).all():
        raise ValueError("bandwidth must be finite and >= 0 everywhere, got other values in the tensor")
    return bandwidth.to(anchors).expand(anchors.shape[1:])


def _checked_weights(weights: Tensor, anchors: Tensor) -> Tensor:
    if weights.shape != anchors.shape[:1] or not (weights.isfinite() & (weights >= 0)).all() or not weights.sum() > 0:
        raise ValueError(
            f"anchor_weights must be {anchors.shape[0]} finite numbers >= 0 with a positive sum, one per anchor, got "
            f"{list(weights.shape)}"
        )
    return weights.to(anchors.device, torch.float64)


def _stream(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _run_blocks(
    fill: Callable[[range, torch.Generator], None], length: int, step: int, seed: int, device: torch.device
) -> None:
    """Split `range(length)` into blocks of steps and call `fill` for each, in threads on the CPU."""
    size = step * STEPS_PER_BLOCK
    blocks = [range(start, min(start + size, length), step) for start in range(0, length, size)]
    inference = torch.is_inference_mode_enabled()

    def run(index: int) -> None:
        with torch.inference_mode(inference):  # which is set per thread
            fill(blocks[index], _stream(seed + 1 + index, device))

    workers = min(torch.get_num_threads(), len(blocks)) if device.type == "cpu" else 1
    if workers == 1:
        for index in range(len(blocks)):
            run(index)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, range(len(blocks))))


def _add_scaled(centres: Tensor, noise: Tensor, scale: float | Tensor, tokens: Tensor | slice, *, out: Tensor) -> None:
    """Compute `out = centres + h * noise`; a tensor `h` is `[N, Z]`, indexed by `tokens`."""
    if isinstance(scale, Tensor):
        torch.addcmul(centres, noise, scale[tokens], out=out)
    else:
        torch.add(centres, noise, alpha=scale, out=out)


def _draw(num_anchors: int, shape: tuple[int, ...], weights: Tensor | None, stream: torch.Generator) -> Tensor:
    """Draw indices of anchors, int64.

    Each 63-bit random number gives two indices, which is three times as fast as `torch.randint` on a CPU and equally
    uniform: with 31 bits, the probabilities of two anchors differ by less than `A / 2^31` relative to their value.
    """
    count = torch.Size(shape).numel()
    if weights is not None:
        return torch.multinomial(weights, count, replacement=True, generator=stream).view(shape)
    bits = torch.empty((count + 1) // 2, dtype=torch.int64, device=stream.device).random_(generator=stream)
    indices = bits.view(torch.int32).bitwise_and_(2**31 - 1)[:count].long()
    return indices.mul_(num_anchors).bitwise_right_shift_(31).view(shape)
