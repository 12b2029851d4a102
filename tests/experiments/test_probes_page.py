"""The page on kinds of probes says what its records say: on an invented record whose answer is known."""

import pytest
from results import probes as page


def row(features, regressor, r2):
    return {
        "features": features,
        "regressor": regressor,
        "r2": r2,
        "kendall_tau": r2 - 0.1,
        "validation_r2": r2 + 0.01,
        "margin": 0.25,
        "coverage": 0.9,
    }


@pytest.fixture
def folder(write_record):
    """Ridge reaches .5 without a code, a set transformer .9 without and .8 with SANE, the linear code .3."""
    found = {
        f"{features}, {regressor}": row(features, regressor, r2)
        for features, regressor, r2 in (
            ("layer_statistics", "ridge", 0.4),
            ("spectral_features", "ridge", 0.3),
            ("weight_profile", "ridge", 0.5),
            ("token_statistics", "set_transformer", 0.9),
            ("sane_tokens", "set_transformer", 0.8),
            ("linear_tokens", "set_transformer", 0.3),
        )
    }
    bests = {"sane_best": "sane_tokens", "linear_best": "linear_tokens", "weights_best": "token_statistics"}
    found |= {best: found[f"{features}, set_transformer"] for best, features in bests.items()}
    found["best"] = found["weights_best"]
    pairs = {
        "SANE less best without a code": {"difference": -0.1, "interval": [-0.2, -0.05]},
        "SANE less linear code": {"difference": 0.5, "interval": [0.4, 0.6]},
    }
    results = {"table": dict.fromkeys(page.PROPERTIES, found), "differences": dict.fromkeys(page.PROPERTIES, pairs)}
    return write_record("probes/usps_seed_0", results)


def test_every_block_of_a_record(folder):
    found = page.blocks(folder)
    assert "ridge in 0, boosted trees in 0, set transformer in 3" in found["verdict"]
    assert "in 3 cells for R2 and in 3 for Kendall's tau" in found["verdict"]
    assert "only in 0 and 0; with 95% intervals over runs, SANE is above it in 0 and below it in 3" in found["verdict"]
    assert (
        "| usps_seed: epoch | SANE | SANE, latents, set transformer | 0.810 | 0.800 | 0.700 | ±0.25 (90%) |"
        in (found["chosen"])
    )
    assert "| usps_seed: accuracy | -0.100, -0.200 to -0.050 | +0.500, +0.400 to +0.600 |" in found["differences"]
    assert "| profile of W, ridge | 0.500 | 0.400 |" in found["scores"]
    assert "| statistics of tokens, set transformer | **0.900** | **0.800** |" in found["scores"]
    assert "- usps_seed: `python experiments/paper_probes.py`, seed 0, a processor, one thread" in found["source"]


def test_without_records_there_is_nothing_to_say(tmp_path):
    assert set(page.blocks(tmp_path).values()) == {""}
