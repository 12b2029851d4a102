"""Compare one SANE pre-training step with matrix products and with a plain version of the paper's loop.

    OMP_NUM_THREADS=2 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 \
        python benchmarks/pretraining_step.py --output pretraining_step.json

A step has width 512, 6 + 6 layers, windows of 52 tokens, batches of 64 and two views, that is, 6,656 tokens. All
variants run in one process with one allocator, from the same weights and on the same batches; times are medians. FLOP
are counted as 6 per matrix parameter and token (2 forward, 4 backward); attention products, norms, losses and the
optimizer are not counted, but their time is. Losses are compared after the same number of steps. bf16 is measured only
if its products are faster than those of fp32; otherwise they are emulated, and a step can take minutes. The record
states what was omitted. About 3 minutes and 3 GB on 2 CPU cores.
"""

import re
import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from running import finish, new_parser, start
from torch import Tensor, nn

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._failures import run_script
from hf_sane.training._data import TrainingData
from hf_sane.training._preparation import one_cycle
from hf_sane.training._pretraining import Progress, Run
from hf_sane.training._settings import PretrainSettings

WINDOW, TOKEN_DIM, LATENT = 52, 289, 128
PROBE_SIDE = 512  # size of the products that decide whether bf16 is measured: takes seconds even if bf16 is slow


@dataclass(frozen=True)
class Sizes:
    """Sizes of the step, and of the product for the machine's rate."""

    hidden: int = 512
    layers: int = 6
    batch: int = 64
    product: int = 2048

    @property
    def tokens(self) -> int:
        """Tokens of one step, with two views of every window."""
        return 2 * self.batch * WINDOW


class PlainBlock(nn.Module):
    """Pre-LN GPT-2 block without biases, one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP, both with residual connections."""
        batch, window, width = x.shape
        parts = self.qkv(self.norm_1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, window, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, window, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class PlainSANE(nn.Module):
    """A plain implementation of the paper's autoencoder."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.tables = nn.ModuleList(
            nn.ModuleList(nn.Embedding(n, width // 2) for n in config.max_positions) for _ in range(2)
        )
        self.stacks = nn.ModuleList(
            nn.ModuleList(PlainBlock(width, config.num_attention_heads) for _ in range(config.num_hidden_layers))
            for _ in range(2)
        )
        self.inputs = nn.ModuleList([nn.Linear(config.token_dim, width), nn.Linear(config.latent_dim, width)])
        self.outputs = nn.ModuleList([nn.Linear(width, config.latent_dim), nn.Linear(width, config.token_dim)])
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(config.window_size * config.latent_dim, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
            nn.ReLU(),
            nn.Linear(config.projection_dim, config.projection_dim, bias=False),
            nn.LayerNorm(config.projection_dim),
        )

    def half(self, side: int, x: Tensor, positions: Tensor) -> Tensor:
        """Encoder (`side` 0) or decoder (1)."""
        token, layer, channel = (table(positions[..., i]) for i, table in enumerate(self.tables[side]))
        x = self.inputs[side](x) + torch.cat([token + layer, channel], dim=-1)
        for block in self.stacks[side]:
            x = block(x)
        return self.outputs[side](x)

    def copy_from(self, model: SANEModel) -> "PlainSANE":
        """Copy the weights of the library's model."""
        sides = (
            (model.token_in, model.encoder_positions, model.encoder, model.latent_out),
            (model.latent_in, model.decoder_positions, model.decoder, model.token_out),
        )
        for side, (enter, positions, layers, leave) in enumerate(sides):
            self.inputs[side].load_state_dict(enter.state_dict())
            self.outputs[side].load_state_dict(leave.state_dict())
            tables = (positions.token_table, positions.layer_table, positions.channel_table)
            for table, other in zip(self.tables[side], tables, strict=True):
                table.load_state_dict(other.state_dict())
            for block, layer in zip(self.stacks[side], layers, strict=True):
                attention = layer.attention
                weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
                pairs = {block.out: attention.o_proj, block.up: layer.fc_in, block.down: layer.fc_out}
                pairs |= {block.norm_1: layer.attention_norm, block.norm_2: layer.mlp_norm}
                block.qkv.weight.data.copy_(torch.cat(weights))
                for mine, other in pairs.items():
                    mine.load_state_dict(other.state_dict())
        head = model.projection_head
        for index, other in ((1, head.fc_in), (2, head.norm_in), (4, head.fc_out), (5, head.norm_out)):
            self.head[index].load_state_dict(other.state_dict())
        return self


def plain_loss(model: PlainSANE, batch: dict[str, Tensor], contrast_weight: float, temperature: float) -> Tensor:
    """Loss with both views processed in turn: mean squared error of real weights, and NT-Xent."""
    latents, errors = [], []
    for tokens, target in (("tokens", "target_tokens"), ("second_tokens", "second_target_tokens")):
        latent = model.half(0, batch[tokens], batch["positions"])
        decoded = model.half(1, latent, batch["positions"])
        latents.append(latent)
        errors.append(((decoded - batch[target]) * batch["weight_mask"]).square().sum() / batch["weight_mask"].sum())
    views = nn.functional.normalize(torch.cat([model.head(latent) for latent in latents]), dim=1)
    both = len(views)
    scores = (views @ views.T / temperature).masked_fill(torch.eye(both, dtype=torch.bool), float("-inf"))
    contrast = nn.functional.cross_entropy(scores, torch.arange(both).roll(both // 2))
    return (1 - contrast_weight) * torch.stack(errors).mean() + contrast_weight * contrast


class RandomBatches:
    """Replaces the zoo loader by batches that are created before the measurement."""

    def __init__(self, count: int, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        rank = torch.randn(24, TOKEN_DIM, generator=generator) / 24**0.5
        token = torch.arange(WINDOW)
        positions = torch.stack([token, token // 8, token % 8], dim=-1).expand(batch, WINDOW, 3).contiguous()
        mask = torch.rand(WINDOW, TOKEN_DIM, generator=generator).lt(0.4).expand(batch, WINDOW, TOKEN_DIM).contiguous()
        self.batches = []
        for _ in range(count):
            clean = (torch.randn(batch, WINDOW, 24, generator=generator) @ rank) * mask
            views = [clean * (1 + 0.1 * torch.randn(clean.shape, generator=generator)) for _ in range(2)]
            self.batches.append(
                {
                    "tokens": views[0],
                    "second_tokens": views[1],
                    "target_tokens": clean,
                    "second_target_tokens": clean,
                    "positions": positions,
                    "weight_mask": mask,
                }
            )

    def batch(self, step: int, *, with_indices: bool = False) -> dict[str, Tensor]:
        """The next of the batches, cyclically."""
        return self.batches[step % len(self.batches)]


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of `function` without garbage collection, after a warm-up call."""
    return statistics.median(timeit.repeat(function, number=1, repeat=repeats + 1)[1:])


def product_rates(sizes: Sizes, repeats: int, *dtypes: torch.dtype) -> dict[str, float]:
    """FLOP/s of the matrix shapes of the step, per dtype; the largest is the machine's current rate."""
    rates = {}
    for dtype in dtypes:
        for rows, inner, columns in (
            (sizes.product, sizes.product, sizes.product),
            (sizes.tokens, sizes.hidden, 4 * sizes.hidden),
            (sizes.tokens, 4 * sizes.hidden, sizes.hidden),
        ):
            first, second = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
            seconds = median_seconds(lambda a=first, b=second: a @ b, repeats)
            rates[f"{dtype}".removeprefix("torch.") + f"_{rows}x{inner}x{columns}"] = (
                2 * rows * inner * columns / seconds
            )
    return rates


def bf16_speedup(sizes: Sizes, repeats: int) -> float:
    """Rate of a bf16 product of moderate size, relative to fp32."""
    side = min(sizes.product, PROBE_SIDE)
    fp32 = torch.randn(side, side)
    bf16 = fp32.bfloat16()
    return median_seconds(lambda: fp32 @ fp32, repeats) / median_seconds(lambda: bf16 @ bf16, repeats)


def library_run(config: SANEConfig, batches: RandomBatches, precision: str) -> tuple[Run, SANEModel]:
    """The library's training step, without a zoo."""
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = PretrainSettings(zoo=["none"], output="none", mixed_precision=precision, learning_rate=1e-4)
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    torch.manual_seed(0)
    model = SANEModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=3e-9, fused=True)
    scheduler = one_cycle(optimizer, arguments, 1000)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    run = Run(
        arguments=arguments,
        accelerator=accelerator,
        model=prepared.train(),
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        batches=batches,  # type: ignore[arg-type]
        extractor=None,  # type: ignore[arg-type]
        data=TrainingData(train=(), validation=(), num_models=()),
        behavior=None,
        supervision=None,
        num_steps=1000,
        steps_per_epoch=1000,
        progress=Progress(),
    )
    return run, model


def plain_stepper(config: SANEConfig, batches: RandomBatches) -> Callable[[], Tensor]:
    """The plain fp32 loop with AdamW and OneCycleLR of PyTorch."""
    torch.manual_seed(0)
    source = SANEModel(config)  # initialised first, with the same weights as the library's run
    model = PlainSANE(config).copy_from(source).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=3e-9)
    arguments = PretrainSettings(zoo=["none"], output="none", learning_rate=1e-4)
    scheduler = one_cycle(optimizer, arguments, 1000)
    steps = iter(range(10_000))

    def step() -> Tensor:
        loss = plain_loss(model, batches.batch(next(steps)), float(config.contrast_weight), float(config.temperature))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return loss.detach()

    return step


def time_shares(step: Callable[[], Tensor]) -> dict[str, float]:
    """Shares of the time of one step by kind of work, from PyTorch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    kinds = {"products": r"::(mm|addmm|bmm|baddbmm)$", "attention": "attention", "gelu": "gelu", "adamw": "adamw"}
    return {
        kind: sum(time for name, time in times.items() if re.search(pattern, name)) / sum(times.values())
        for kind, pattern in kinds.items()
    }


def measure(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Run all variants in turn."""
    config = SANEConfig(
        token_dim=TOKEN_DIM,
        hidden_size=sizes.hidden,
        latent_dim=LATENT,
        num_hidden_layers=sizes.layers,
        window_size=WINDOW,
        num_attention_heads=8,
    )
    batches = RandomBatches(4, sizes.batch)
    fp32, model = library_run(config, batches, "no")
    parameters = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    tokens = sizes.tokens
    speedup = bf16_speedup(sizes, max(repeats, 5))
    has_bf16 = speedup > 1
    rates = product_rates(sizes, max(repeats, 5), torch.float32, *([torch.bfloat16] if has_bf16 else []))
    variants = {"plain_fp32": plain_stepper(config, batches), "ours_fp32": fp32.train_step}
    left_out = {}
    if has_bf16:
        variants["ours_bf16"] = library_run(config, batches, "bf16")[0].train_step
    else:
        reason = (
            f"bf16 products run at {speedup:.2g} x the rate of fp32 ones here: the processor has no units for them"
        )
        left_out["ours_bf16"] = reason
        print(f"ours_bf16 left out: {reason}", flush=True)
    results: dict[str, Any] = {}
    for name, step in variants.items():
        seconds, losses, shares = [], [], []
        for _ in range(repeats + 1):
            # Measured next to each step, since the speed of a shared machine varies.
            product_rate = max(product_rates(sizes, max(repeats, 5), torch.float32).values())
            started = time.perf_counter()
            losses.append(step().item())
            seconds.append(time.perf_counter() - started)
            shares.append(6 * parameters * tokens / seconds[-1] / product_rate)
        middle = statistics.median(seconds[1:])  # the first step allocates
        flops = 6 * parameters * tokens / middle
        results[name] = {
            "seconds": middle,
            "tokens_per_second": tokens / middle,
            "gflops": flops / 1e9,
            "share_of_fp32_products": statistics.median(shares[1:]),
            "last_loss": losses[-1],
        }
        print(f"{name}: {middle:.2f} s, {flops / 1e9:.0f} GFLOP/s, loss {losses[-1]:.5f}", flush=True)
    plain = results["plain_fp32"]
    ratios = {
        "ours_fp32_share_of_products": results["ours_fp32"]["share_of_fp32_products"],
        "bf16_product_over_fp32_product": speedup,
    }
    for name in variants.keys() - {"plain_fp32"}:
        ratios[f"{name}_over_plain"] = plain["seconds"] / results[name]["seconds"]
        ratios[f"{name}_loss_over_plain"] = results[name]["last_loss"] / plain["last_loss"]
    ratios["largest_loss_difference"] = max(abs(ratio - 1) for name, ratio in ratios.items() if "_loss_" in name)
    return {
        "ratios": ratios,
        "steps": results,
        "left_out": left_out,
        "time_shares_of_ours_fp32": time_shares(fp32.train_step),
        "product_gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "matrix_parameters": parameters,
        "tokens_per_step": tokens,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    names = {"hidden": "hidden-size", "layers": "num-layers", "batch": "batch-size"}
    parser = new_parser(__doc__, former={f"--{old}": f"--{name}" for old, name in names.items()})
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per variant")
    for name, what in {"hidden": "width", "layers": "layers of encoder and decoder", "batch": "windows"}.items():
        parser.add_argument(f"--{names[name]}", dest=name, type=int, default=getattr(Sizes, name), help=what)
    parser.add_argument("--product", type=int, default=Sizes.product, help="side of the square product")
    arguments, record = start(parser, argv)
    sizes = Sizes(arguments.hidden, arguments.layers, arguments.batch, arguments.product)
    report = measure(sizes, arguments.repeats)
    return finish(record, report, arguments.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="pretraining_step.py")
