"""The page on implicit networks says what its records say; symmetries keep functions, and probes learn."""

import field_probes
import field_symmetries
import pytest
import torch
from results import implicit

from hf_sane.networks._fields import SIREN, field_images, pixel_positions, starting_fields


def probe(*test):
    return {"test": list(test), "validation": list(test), "settings": [{}] * len(test)}


def best(accuracy, gap):
    return {"probe": "mlp", "accuracy": accuracy, "gap": gap, "interval": [gap - 0.01, gap + 0.01]}


@pytest.fixture
def folder(write_record):
    """SANE's latents reach .95, weights .96: above the goal of .914, below the aim of .966."""
    results = {
        "grouping": "kind",
        "probes": {
            "weights": {"size": 1185, "ridge": probe(0.9), "mlp": probe(0.96, 0.97)},
            "sane": {"size": 1040, "ridge": probe(0.8), "mlp": probe(0.95)},
        },
        "best": {"sane": best(0.95, 0.0), "weights": best(0.96, -0.01)},
        "psnr": {"test": [30.0, 35.5, 40.0]},
        "sane_r2": 0.75,
    }
    return write_record("implicit/shared_0", results, data={"train": 20000, "validation": 1500, "test": 3000})


def test_the_page_says_which_goals_were_reached_beside_the_published_numbers(folder):
    found = implicit.blocks(folder)
    assert "**same initialisation: 0.950** with SANE's latents and a perceptron" in found["verdict"]
    assert "goal of 0.914 is reached and the aim of 0.966 is not reached" in found["verdict"]
    assert "-0.010 (-0.020 to +0.000) against weights (W) (0.960)" in found["verdict"]
    assert "| weights (W) | 1,185 | 0.900 |  | 0.960 / 0.970 |  |" in found["table"]
    assert "| NG-GNN | their own | 0.914 | 0.680 |" in found["published"]
    assert "| latents of SANE, perceptron | this page, same initialisation | 0.950 |  |" in found["published"]
    assert "| same initialisation | 20,000 | 1,500 | 3,000 | 35.5 (30.0 to 40.0) | 0.750 | kind |" in found["fit"]
    assert "commit 0123456789ab" in found["source"]


def test_without_records_there_is_nothing_to_say(tmp_path):
    found = implicit.blocks(tmp_path)
    assert found.pop("verdict").startswith("**There are no results yet.**")
    assert set(found.values()) == {""}


def test_order_and_signs_of_units_keep_the_function_and_are_found_again():
    fields = starting_fields(lambda: SIREN((6, 5)), [0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    mixed = fields
    for layer, width in enumerate((6, 5)):
        order = torch.stack([torch.randperm(width, generator=generator) for _ in range(3)])
        signs = torch.randint(0, 2, (3, width), generator=generator) * 2.0 - 1
        mixed = field_symmetries.rearranged(mixed, layer, order, signs)
    positions = pixel_positions(4, 4)
    torch.testing.assert_close(field_images(mixed, positions), field_images(fields, positions), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed["hidden.0.weight"], fields["hidden.0.weight"])
    for name in fields:
        torch.testing.assert_close(field_symmetries.canonical(mixed)[name], field_symmetries.canonical(fields)[name])
        torch.testing.assert_close(field_symmetries.aligned(mixed, fields)[name], fields[name])


@pytest.mark.parametrize("name", ["ridge", "boosted_trees", "mlp", "token_transformer"])
def test_probes_learn_what_is_there_and_are_chosen_on_validation_networks(name, monkeypatch):
    monkeypatch.setitem(field_probes.TREES, "max_iter", 4)
    monkeypatch.setattr(field_probes, "BATCH", 20)
    generator = torch.Generator().manual_seed(1)
    labels = {part: torch.arange(120) % 3 for part in ("train", "validation", "test")}
    tokens = {part: torch.randn(120, 4, 3, generator=generator) for part in labels}
    for part, own in tokens.items():
        own[:, 2] += 4 * torch.nn.functional.one_hot(labels[part], 3)
    features = field_probes.Features(tokens, labels)
    settings = {"epochs": 4} if name in ("mlp", "token_transformer") else {}
    found = getattr(field_probes, name)(features, **settings)
    assert found.test > 0.8
    assert found.validation > 0.8
    assert found.correct.shape == (120,)
