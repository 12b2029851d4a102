"""A small set transformer over the tokens of networks, as a probe."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hf_sane.core._metrics import r2_of_errors
from hf_sane.probing._probes import conformal_margins
from hf_sane.probing._runs import fold_of_runs
from hf_sane.probing._token_sets import TokenSets

MAX_VALUE = 8.0  # of standardised features, in standard deviations
BATCH = 256  # networks at a time, for predictions


@dataclass(frozen=True)
class SetTransformerSettings:
    """Size and training of a set transformer.

    Attributes:
        members: Number of networks whose predictions are averaged; each stops early on other runs. At least two.
        width: Size of hidden vectors, a multiple of `heads`.
        heads: Number of attention heads.
        blocks: Number of attention blocks.
        queries: Number of learned queries that collect the tokens.
        dropout: Share of hidden values that are dropped in training.
        noise: Standard deviation of the noise on standardised features in training.
        epochs: Number of passes over the training networks.
        batch_size: Number of networks per step.
        rate: Largest learning rate of AdamW.
        decay: Weight decay.
        seed: Random seed of weights, batches, noise and of the runs on which training stops.

    Raises:
        ValueError: If there are fewer than two members.
    """

    members: int = 3
    width: int = 32
    heads: int = 4
    blocks: int = 1
    queries: int = 4
    dropout: float = 0.1
    noise: float = 0.1
    epochs: int = 24
    batch_size: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError(f"expected at least two members, which stop on different runs, got {self.members}")


class AttentionBlock(nn.Module):
    """Attention from queries to tokens, and a perceptron, each with layer norm before and a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.token_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.kv_proj, self.o_proj = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Queries `[B, Q, H]` after attention to tokens `[B, N, H]`: those whose `mask` `[B, 1, 1, N]` is `True`."""
        batch, count, width = queries.shape
        query = self.q_proj(self.query_norm(queries)).view(batch, count, self.heads, -1).transpose(1, 2)
        pairs = self.kv_proj(self.token_norm(tokens)).view(batch, tokens.shape[1], 2, self.heads, -1)
        key, value = pairs.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        queries = queries + self.dropout(self.o_proj(found.transpose(1, 2).reshape(batch, count, width)))
        return queries + self.dropout(self.perceptron(self.norm(queries)))


class SetTransformer(nn.Module):
    """Attention among the tokens of a network, and learned queries that collect them.

    After Lee et al. 2019 (arXiv:1810.00825), without inducing points. Tokens know the kind and index of their layer
    and their place within a channel, but no channel index: the output does not depend on the order of the channels of
    a layer.

    Args:
        num_features: Features per token.
        num_places: Sizes of the tables of `TokenSets.places`.
        num_targets: Properties to predict.
        settings: Size of the network.
    """

    def __init__(
        self, num_features: int, num_places: Sequence[int], num_targets: int, settings: SetTransformerSettings
    ) -> None:
        super().__init__()
        width = settings.width
        shape = (width, settings.heads, settings.dropout)
        self.enter = nn.Linear(num_features, width)
        self.places = nn.ModuleList(nn.Embedding(count, width) for count in num_places)
        self.blocks = nn.ModuleList(AttentionBlock(*shape) for _ in range(settings.blocks))
        self.queries = nn.Parameter(torch.randn(settings.queries, width) / width**0.5)
        self.collect = AttentionBlock(*shape)
        self.leave = nn.Sequential(
            nn.LayerNorm(settings.queries * width),
            nn.Linear(settings.queries * width, width),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(width, num_targets),
        )

    def forward(self, values: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        """Standardised properties `[B, T]` of standardised token sets.

        Args:
            values: `[B, N, F]`.
            places: `[B, N, 3]`, or `[1, N, 3]` if they are the same for all networks.
            mask: `[B, 1, 1, N]`, `True` where there is a token; `None` if there are no others.
        """
        tokens = self.enter(values)
        for table, column in zip(self.places, places.unbind(2), strict=True):
            assert isinstance(table, nn.Embedding)
            tokens = tokens + table(column.clamp_max(table.num_embeddings - 1))
        for block in self.blocks:
            tokens = block(tokens, tokens, mask)
        collected = self.collect(self.queries.expand(len(tokens), -1, -1), tokens, mask)
        found: Tensor = self.leave(collected.flatten(1))
        return found


@dataclass(frozen=True)
class SetTransformerProbe:
    """Average of several set transformers, each of which stopped early on other runs, by property.

    Attributes:
        members: For each member, one network per property: that of the best epoch for it.
        mean: `[L, F]` mean of the features in each layer of the training networks.
        scale: `[L, F]` standard deviation; infinite where it is zero.
        centre: `[T]` mean of the properties.
        spread: `[T]` standard deviation of the properties.
        validation_r2: R2 of each property on the runs on which members stopped, over all members.
        settings: Mean number of epochs of the members, for each property.
        margins: Half the width of 90% prediction intervals, from the same errors.
    """

    members: tuple[tuple[SetTransformer, ...], ...]
    mean: Tensor
    scale: Tensor
    centre: Tensor
    spread: Tensor
    validation_r2: tuple[float, ...]
    settings: tuple[dict[str, float], ...]
    margins: tuple[float, ...]

    @classmethod
    def fit_runs(
        cls,
        features: TokenSets,
        targets: Tensor | np.ndarray,
        *,
        runs: Sequence[object] | np.ndarray,
        settings: SetTransformerSettings | None = None,
    ) -> "SetTransformerProbe":
        """Fit on all networks but those of some runs, on which training stops; with other runs for each member.

        Every run is left out by exactly one member. Of each member, the epoch with the smallest error on these runs is
        kept, for each property.

        Args:
            features: Tokens of `M` networks.
            targets: `[M]` or `[M, T]`.
            runs: `[M]`, the training run of each network; at least as many runs as members.
            settings: Size and training; the defaults if `None`.

        Raises:
            ValueError: If shapes do not fit, values are not finite, a property is constant, or there are too few runs.
        """
        settings = settings or SetTransformerSettings()
        y = torch.as_tensor(targets).double().cpu()
        y = y[:, None] if y.ndim == 1 else y
        if y.ndim != 2 or len(y) != len(features) or not len(y):
            raise ValueError(
                f"expected targets [M] or [M, T] of {len(features)} networks, at least one, got {list(y.shape)}"
            )
        if bad := (~(features.values.flatten(1).isfinite().all(1) & y.isfinite().all(1))).nonzero().flatten().tolist():
            raise ValueError(f"features or targets are not finite for networks {bad[:10]}; leave these networks out")
        if (y == y[:1]).all(dim=0).any():
            raise ValueError("a set transformer requires targets that vary, got a property with all targets equal")
        folds = torch.from_numpy(fold_of_runs(runs, settings.members, seed=settings.seed))
        mean, scale = _moments(features)
        centre, spread = y.mean(dim=0), y.std(dim=0, unbiased=False)
        sets, wanted = _standardized(features, mean, scale), ((y - centre) / spread).float()
        errors = torch.empty_like(y)
        members, epochs = [], []
        for member in range(settings.members):
            stop = folds == member
            networks, found, best = _trained(
                sets[~stop], wanted[~stop], sets[stop], wanted[stop], settings, settings.seed + member
            )
            errors[stop] = (found - wanted[stop]).double() * spread
            members.append(networks)
            epochs.append(best)
        mean_epochs = np.mean(epochs, axis=0)
        return cls(
            tuple(members),
            mean,
            scale,
            centre,
            spread,
            tuple(r2_of_errors(errors[None], y)[0].tolist()),
            tuple({"epochs": float(count)} for count in mean_epochs),
            conformal_margins(errors),
        )

    @property
    def num_features(self) -> int:
        """Number of features per token."""
        return self.mean.shape[1]

    @torch.no_grad()
    def predict(self, features: TokenSets) -> Tensor:
        """Predict properties `[M, T]`, float64.

        Raises:
            ValueError: If tokens have another number of features than the fitted ones, or values are not finite.
        """
        if features.num_features != self.num_features:
            raise ValueError(
                f"the probe was fitted on tokens of {self.num_features} features, got {features.num_features}; use "
                "the same features"
            )
        if not features.values.isfinite().all():
            raise ValueError("expected finite features, got NaN or infinite values; leave those networks out")
        sets = _standardized(features, self.mean, self.scale)
        found = torch.stack([_predicted(networks, sets) for networks in self.members]).mean(dim=0)
        return found.double() * self.spread + self.centre


def _moments(features: TokenSets) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the features in each layer, `[L, F]`; infinite where they are constant."""
    layers = features.places[..., 1][features.mask]
    values = features.values[features.mask].double()
    shape = (int(layers.max()) + 1, values.shape[1])
    counts = layers.bincount().clamp_min(1)[:, None]
    mean = torch.zeros(shape, dtype=torch.float64).index_add_(0, layers, values) / counts
    squares = torch.zeros(shape, dtype=torch.float64).index_add_(0, layers, (values - mean[layers]).square())
    scale = (squares / counts).sqrt()
    scale = torch.where(scale > 1e-6 * mean.abs().clamp_min(1e-6), scale, torch.inf)
    return mean.float(), scale.float()


def _standardized(features: TokenSets, mean: Tensor, scale: Tensor) -> TokenSets:
    """Features in standard deviations of their layer, zero where there is no token."""
    layers = features.places[..., 1].clamp_max(len(mean) - 1)
    values = ((features.values - mean[layers]) / scale[layers]).clamp(-MAX_VALUE, MAX_VALUE)
    return TokenSets(values * features.mask[..., None], features.places, features.mask)


class _Inputs:
    """Inputs of a set transformer, in less time for networks of one layout, which share places and have no padding."""

    def __init__(self, sets: TokenSets) -> None:
        self.sets = sets
        self.is_shared = bool(sets.mask.all() and (sets.places == sets.places[:1]).all())

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, places and mask of some networks, as [`SetTransformer`] takes them."""
        if self.is_shared:
            return self.sets.values[rows], self.sets.places[:1], None
        return self.sets.values[rows], self.sets.places[rows], self.sets.mask[rows][:, None, None]


def _trained(
    train: TokenSets, wanted: Tensor, stop: TokenSets, stop_wanted: Tensor, settings: SetTransformerSettings, seed: int
) -> tuple[tuple[SetTransformer, ...], Tensor, list[int]]:
    """Networks of the best epoch for each property, their predictions for the other runs, and these epochs."""
    steps = -(-len(train) // settings.batch_size)
    best = torch.full((wanted.shape[1],), torch.inf)
    found, inputs = torch.zeros_like(stop_wanted), _Inputs(train)
    epochs: list[int] = [0] * len(best)
    states: list[dict[str, Tensor]] = [{}] * len(best)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [count + 1 for count in train.places.amax(dim=(0, 1)).tolist()]
        network = SetTransformer(train.num_features, sizes, wanted.shape[1], settings)
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.rate, total_steps=settings.epochs * steps, pct_start=0.15
        )
        for epoch in range(1, settings.epochs + 1):
            network.train()
            for rows in torch.randperm(len(train)).split(settings.batch_size):
                values, places, mask = inputs.batch(rows)
                noisy = values + settings.noise * torch.randn_like(values)
                loss = nn.functional.mse_loss(network(noisy, places, mask), wanted[rows])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            guess = _predicted([network] * len(best), stop)
            errors = (guess - stop_wanted).square().mean(dim=0)
            for index in (errors < best).nonzero().flatten().tolist():
                best[index], found[:, index], epochs[index] = errors[index], guess[:, index], epoch
                states[index] = copy.deepcopy(network.state_dict())
    networks = []
    for state in states:
        network.load_state_dict(state)
        networks.append(copy.deepcopy(network).requires_grad_(requires_grad=False))
    return tuple(networks), found, epochs


@torch.no_grad()
def _predicted(networks: Sequence[SetTransformer], sets: TokenSets) -> Tensor:
    """One column per property, each from its own network."""
    outputs: dict[int, Tensor] = {}
    inputs = _Inputs(sets)
    for network in networks:
        if id(network) not in outputs:
            network.eval()
            parts = torch.arange(len(sets)).split(BATCH)
            outputs[id(network)] = torch.cat([network(*inputs.batch(rows)) for rows in parts])
    return torch.stack([outputs[id(network)][:, index] for index, network in enumerate(networks)], dim=1)
