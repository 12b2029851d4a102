"""Zoos of implicit networks: fitted as by PyTorch, one for each image, in its split; interruptions and symmetries."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_sane.networks import _fields as fields
from hf_sane.networks._images import load_images
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._symmetries import network_spec
from hf_sane.zoo.building import _fields as building
from hf_sane.zoo.building._fields import FieldSettings, fit_zoo

SMALL = {"hidden_sizes": [6, 5], "steps": 12, "learning_rate": 1e-2, "group_size": 8, "progress_bar": False, "seed": 3}
LIMITS = {"train_limit": 20, "validation_limit": 4, "test_limit": 4}


def small(**settings):
    return FieldSettings(**{**SMALL, **LIMITS, **settings})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    return fit_zoo(small(), None, folder), folder


def test_networks_are_fitted_as_by_autograd_and_adam():
    positions, values = fields.pixel_positions(4, 5), torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(0))
    modules = [fields.SIREN((6, 5), num_channels=2) for _ in range(3)]
    start = {name: torch.stack([m.state_dict()[name] for m in modules]) for name in modules[0].state_dict()}
    found = fields.fit_fields(start, positions, values, steps=3, learning_rate=1e-2)
    for i, module in enumerate(modules):
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for share in (1.0, 0.05 + 0.95 * 0.75, 0.05 + 0.95 * 0.25):  # half a cosine in three steps
            optimizer.param_groups[0]["lr"] = 1e-2 * share
            optimizer.zero_grad()
            (module(positions) - values[i]).square().mean().backward()
            optimizer.step()
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(found[name][i], tensor, atol=1e-5, rtol=1e-4)


def test_rows_are_networks_of_their_images(built):
    zoo, _ = built
    assert {name: len(split) for name, split in zoo.splits.items()} == {"train": 20, "validation": 4, "test": 4}
    data = load_images("digits", **LIMITS)
    images, labels = data.split("test")
    split = zoo.splits["test"]
    assert split.column("label").tolist() == labels.tolist()
    assert split.column("image").tolist() == [0, 1, 2, 3]
    raw = (images * data.std[0] + data.mean[0]) / 16
    values = raw.flatten(1).unsqueeze(2)
    assert float(values.min()) >= 0
    assert 0.9 < float(values.max()) <= 1 + 1e-6
    drawn = torch.stack([split.model(i)(fields.pixel_positions(8, 8)) for i in range(4)])
    own = fields.peak_signal_to_noise(drawn.detach(), values)
    torch.testing.assert_close(own, torch.from_numpy(split.column("psnr").copy()), atol=1e-2, rtol=0)
    shifted = fields.peak_signal_to_noise(drawn.detach().roll(1, 0), values)
    assert own.mean() > shifted.mean() + 0.2  # each network is that of its own image
    assert split.table.column("epoch").tolist() == [12] * 4


def test_networks_start_from_one_or_from_many_initialisations(built, tmp_path):
    shared = built[0].splits["train"].stacked_tensors()["hidden.0.weight"]
    apart = fit_zoo(small(independent=True), None, tmp_path).splits["train"]
    assert shared.std(dim=0).max() < 0.15 < apart.stacked_tensors()["hidden.0.weight"].std(dim=0).min()
    assert len(set(apart.column("seed").tolist())) == 20


def test_an_interrupted_fit_is_continued_to_the_same_bytes(built, tmp_path, monkeypatch):
    calls = []

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fields.fit_fields(*arguments, **options)

    monkeypatch.setattr(building, "fit_fields", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_zoo(small(), None, tmp_path / "zoo")
    with pytest.raises(ValueError, match=r"other settings of steps: expected \[12\], got \[13\]"):
        fit_zoo(small(steps=13), None, tmp_path / "zoo")
    continued = fit_zoo(small(), None, tmp_path / "zoo")
    assert len(calls) == 6  # 3 + 1 + 1 groups, of which the second was tried twice
    for split, part in built[0].splits.items():
        assert torch.equal(part.stacked_tokens(), continued.splits[split].stacked_tokens())
    fit_zoo(small(), None, tmp_path / "zoo")
    assert len(calls) == 6  # a finished zoo is only loaded
    with pytest.raises(ValueError, match="other settings of learning_rate"):
        fit_zoo(small(learning_rate=1e-3), None, tmp_path / "zoo")


def test_a_loaded_zoo_knows_its_networks_and_their_symmetries(built):
    zoo = Zoo.load(built[1])
    split = zoo.splits["train"]
    config = split.config(0)
    assert isinstance(config, fields.SIREN)
    keys = (split.column(name)[0] for name in ("architecture", "layout"))
    spec = network_spec(zoo.facts, *keys)
    assert spec.sizes == {"hidden.0": 6, "hidden.1": 5}
    permutation = {"hidden.0": torch.arange(6).flip(0), "hidden.1": torch.arange(5).roll(1)}
    module, positions = split.model(0), fields.pixel_positions(8, 8)
    other = copy.deepcopy(module)
    other.load_state_dict(spec.apply(split.state_dict(0), permutation))
    torch.testing.assert_close(other(positions), module(positions), atol=1e-4, rtol=1e-4)
    card = zoo_card({"default": zoo.facts})
    told = "12 steps of Adam from the same random initialisation, learning rate 0.01, all pixels per step, seed 3"
    assert told in " ".join(card.split())
    assert "implicit network: SIREN, hidden_sizes \\[6, 5\\], frequency 30.0, num_channels 1" in card
    assert "a torch module: positions" in card
    assert "register_architecture" not in card


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_sizes": []}, "hidden_sizes is empty: name at least one width"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"steps": -1}, "expected steps to be a finite number of at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        small(**wrong)
