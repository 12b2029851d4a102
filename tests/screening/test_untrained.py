"""Whether networks are trained, judged by their weights: small networks, at several budgets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hf_sane

BUDGETS = ("1%", "10%", "100%")
NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    ),
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (8, 8)),
        *(nn.Linear(8, 64), nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True), nn.Flatten()),
        nn.Linear(512, 10),
    ),
}
INITIALISATIONS = {
    "default": lambda weight: weight,
    "normal": lambda weight: nn.init.kaiming_normal_(weight) if weight.ndim > 1 else weight.fill_(weight[0]),
    "truncated": lambda weight: (
        nn.init.trunc_normal_(weight, 0, 0.05, -0.1, 0.1) if weight.ndim > 1 else weight.fill_(weight[0])
    ),
    "fixed": lambda weight: nn.init.normal_(weight, 0, 0.02) if weight.ndim > 1 else weight.fill_(weight[0]),
}


def network(kind: str, initialisation: str, *, steps: int, seed: int = 0) -> nn.Module:
    """A network that learns the classes of random prototypes with noise."""
    torch.manual_seed(seed)
    model = NETWORKS[kind]()
    for parameter in model.parameters():
        INITIALISATIONS[initialisation](parameter.data)
    prototypes, optimizer = torch.randn(10, 64), torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        labels = torch.randint(10, (64,))
        loss = nn.functional.cross_entropy(model(prototypes[labels] + torch.randn(64, 64)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def is_called_untrained(model: nn.Module, folder: Path, budget: str) -> bool:
    save_file(model.state_dict(), folder / "x.safetensors")
    (scan,) = hf_sane.scan(folder / "x.safetensors", budget=budget).scans
    return any(finding.rule == "untrained" for finding in scan.findings)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_no_trained_network_is_called_untrained(kind, initialisation, tmp_path):
    trained = network(kind, initialisation, steps=40)
    assert [is_called_untrained(trained, tmp_path, budget) for budget in BUDGETS] == [False] * 3


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_fresh_perceptrons_are_called_untrained_when_they_were_read(initialisation, tmp_path):
    fresh = network("mlp", initialisation, steps=0)
    assert is_called_untrained(fresh, tmp_path, "100%")


def test_a_fresh_network_with_limits_is_recognised_from_one_per_cent(tmp_path):
    torch.manual_seed(0)
    assert is_called_untrained(nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 500)), tmp_path, "1%")


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_sane_of_this_repository_is_trained(budget):
    (scan,) = hf_sane.scan(Path(__file__).parents[2] / "pretrained" / "sane-usps", budget=budget).scans
    assert [x for x in scan.findings if x.rule == "untrained"] == []


def test_a_fresh_head_among_trained_layers_is_named(tmp_path):
    trained = network("mlp", "default", steps=40)
    tensors = trained.state_dict() | {"head.weight": nn.Linear(96, 60).weight.detach()}
    save_file(tensors, tmp_path / "x.safetensors")
    (scan,) = hf_sane.scan(tmp_path / "x.safetensors").scans
    (found,) = [x for x in scan.findings if x.rule == "untrained"]
    assert found.tensors == ("head.weight",)
