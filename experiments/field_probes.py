"""Classifiers of networks: ridge, boosted trees, a perceptron, and a transformer over tokens; chosen on validation."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn

from hf_sane.probing._probes import RidgePath

PENALTIES = tuple(10.0**exponent for exponent in range(-4, 3))
TREES = {"max_leaf_nodes": 15, "learning_rate": 0.2, "max_iter": 60}
TREE_FEATURES = 64  # principal components, if there are more features
NOISES = (0.1, 0.5)  # of training features, in standard deviations
WIDTH, DROPOUT, BATCH, RATE, DECAY = 256, 0.3, 128, 2e-3, 1e-2
TOKEN_WIDTH, TOKEN_RATE = 64, 2e-3


@dataclass(frozen=True)
class Features:
    """Features of the networks of each split.

    Attributes:
        values: `{split: [M, F]}`, or tokens `[M, N, Z]`.
        labels: `{split: [M]}`.
        flat: `{split: [M, F]}`, if that is not `values` in one row.
    """

    values: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    flat: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, Tensor]:
        """One row for each network, standardised by the training networks."""
        return _standardized(self.flat or {name: found.flatten(1) for name, found in self.values.items()})

    @property
    def tokens(self) -> dict[str, Tensor]:
        """Tokens, standardised by the training networks."""
        shapes = {name: found.shape for name, found in self.values.items()}
        rows = _standardized({name: found.flatten(1) for name, found in self.values.items()})
        return {name: found.view(shapes[name]) for name, found in rows.items()}


@dataclass(frozen=True)
class Found:
    """How a probe did.

    Attributes:
        validation: Accuracy on validation networks.
        correct: Which test networks it got right, `[M]` bool.
        settings: What was chosen on validation networks.
    """

    validation: float
    correct: Tensor
    settings: Mapping[str, Any]

    @property
    def test(self) -> float:
        """Accuracy on test networks."""
        return self.correct.double().mean().item()


def _standardized(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean, std = parts["train"].mean(dim=0), parts["train"].std(dim=0)
    std = torch.where(std > 1e-6 * std.max(), std, torch.inf)  # constant features become zero
    return {name: (found - mean) / std for name, found in parts.items()}


def _leading(parts: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """The leading principal components of training networks, if there are more features."""
    train = parts["train"]
    if train.shape[1] <= size:
        return dict(parts)
    directions = torch.linalg.eigh(train.T @ train).eigenvectors[:, -size:]
    return {name: found @ directions for name, found in parts.items()}


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()


def ridge(features: Features, **_: Any) -> Found:
    """Linear least squares on ones and zeros, with the penalty of the best validation accuracy."""
    rows, labels = features.rows, features.labels
    targets = nn.functional.one_hot(labels["train"]).double()
    path = RidgePath(rows["train"].double(), targets, PENALTIES)
    predicted = {name: path.predict(rows[name].double()).argmax(dim=2) for name in ("validation", "test")}
    scores = [_accuracy(found, labels["validation"]) for found in predicted["validation"]]
    best = int(np.argmax(scores))
    correct = predicted["test"][best] == labels["test"]
    return Found(scores[best], correct, {"penalty": path.penalties[best].item()})


def boosted_trees(features: Features, *, seed: int = 0, **_: Any) -> Found:
    """Gradient-boosted trees on leading components, with the number of rounds of the best validation accuracy."""
    rows = {name: found.numpy() for name, found in _leading(features.rows, TREE_FEATURES).items()}
    labels = features.labels
    trees = HistGradientBoostingClassifier(**TREES, early_stopping=False, random_state=seed)
    trees.fit(rows["train"], labels["train"].numpy())
    staged = {
        name: [torch.from_numpy(np.asarray(found)) for found in trees.staged_predict(rows[name])]
        for name in ("validation", "test")
    }
    scores = [_accuracy(found, labels["validation"]) for found in staged["validation"]]
    best = int(np.argmax(scores))
    return Found(scores[best], staged["test"][best] == labels["test"], {"rounds": best + 1})


class TokenTransformer(nn.Module):
    """Attention over the tokens of a network, with learned positions and a learned query that collects them."""

    def __init__(self, tokens: int, size: int, classes: int) -> None:
        super().__init__()
        self.enter = nn.Linear(size, TOKEN_WIDTH)
        self.positions = nn.Parameter(torch.randn(tokens, TOKEN_WIDTH) / TOKEN_WIDTH**0.5)
        self.query = nn.Parameter(torch.zeros(1, 1, TOKEN_WIDTH))
        self.block = nn.TransformerEncoderLayer(
            TOKEN_WIDTH, 4, 2 * TOKEN_WIDTH, DROPOUT / 3, "gelu", batch_first=True, norm_first=True
        )
        self.collect = nn.MultiheadAttention(TOKEN_WIDTH, 4, batch_first=True)
        self.classify = nn.Sequential(
            nn.Linear(tokens * 8 + TOKEN_WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, classes)
        )
        self.narrow = nn.Linear(TOKEN_WIDTH, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of tokens `[B, N, Z]`."""
        values = self.block(self.enter(tokens) + self.positions)
        collected, _ = self.collect(self.query.expand(len(tokens), -1, -1), values, values, need_weights=False)
        return self.classify(torch.cat([collected.squeeze(1), self.narrow(values).flatten(1)], dim=1))


def perceptron(size: int, classes: int) -> nn.Module:
    """A perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Linear(size, WIDTH),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, WIDTH),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, classes),
    )


def mlp(features: Features, *, epochs: int = 15, seed: int = 0) -> Found:
    """A perceptron over all features; noise and epoch are chosen on validation networks."""
    rows = features.rows
    classes = int(features.labels["train"].max()) + 1
    return _best(
        lambda: perceptron(rows["train"].shape[1], classes), rows, features.labels, epochs, RATE, seed, NOISES
    )


def token_transformer(features: Features, *, epochs: int = 10, seed: int = 0) -> Found:
    """A transformer over tokens; the epoch is chosen on validation networks."""
    tokens = features.tokens
    shape, classes = tokens["train"].shape[1:], int(features.labels["train"].max()) + 1
    return _best(lambda: TokenTransformer(*shape, classes), tokens, features.labels, epochs, TOKEN_RATE, seed, (0.1,))


def _best(
    make: Callable[[], nn.Module],
    values: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    epochs: int,
    rate: float,
    seed: int,
    noises: tuple[float, ...],
) -> Found:
    found: Found | None = None
    with torch.random.fork_rng(devices=[]):
        for noise in noises:
            torch.manual_seed(seed)
            for epoch, model in enumerate(_trained(make(), values["train"], labels["train"], epochs, rate, noise), 1):
                score = _accuracy(_predicted(model, values["validation"]), labels["validation"])
                if found is None or score > found.validation:
                    correct = _predicted(model, values["test"]) == labels["test"]
                    found = Found(score, correct, {"noise": noise, "epoch": epoch})
    assert found is not None
    return found


def _trained(
    model: nn.Module, values: Tensor, labels: Tensor, epochs: int, rate: float, noise: float
) -> Iterator[nn.Module]:
    """Train; yield the model in evaluation mode after each epoch."""
    steps = -(-len(values) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(values)).split(BATCH):
            batch = values[rows]
            logits = model(batch + noise * torch.randn_like(batch))
            loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield model.eval()


@torch.no_grad()
def _predicted(model: nn.Module, values: Tensor) -> Tensor:
    return torch.cat([model(part) for part in values.split(1000)]).argmax(dim=1)
