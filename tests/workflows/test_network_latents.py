"""Latents of whole networks are trained, embedded, probed, sampled and compared like those of tokens."""

import pytest
import torch

import hf_sane
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.tokenization._linear_code import fit_linear_code
from hf_sane.training._preparation import check_fits
from hf_sane.zoo._alignment import aligned_tokens

MODEL = {"hidden_size": 16, "num_latents": 2, "latent_dim": 3, "num_components": 8, "contrast_weight": 0.0}


@pytest.fixture(scope="module")
def sane(tiny_zoo, tmp_path_factory):
    options = {"max_steps": 2, "batch_size": 4, "progress_bar": False, "log_with": "none", "views": ["aligned"]}
    return hf_sane.pretrain(tiny_zoo, output=tmp_path_factory.mktemp("runs") / "run", model=MODEL, **options)


def test_it_starts_from_principal_components_of_aligned_networks(sane, tiny_zoo):
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    tokens = sane.extractor.normalize(aligned_tokens(split), layout).flatten(1).double()
    values = torch.linalg.svdvals(tokens - tokens.mean(0)) / len(tokens) ** 0.5
    torch.testing.assert_close(sane.model.components.deviations.double(), values[:8], rtol=1e-4, atol=1e-6)


def test_latents_are_embedded_in_poolings_that_need_no_tokens(sane, tiny_zoo, tmp_path):
    latents, layout = sane.encode(tiny_zoo.splits["test"].model(0))
    assert latents.shape == (2, 3)
    assert sane.decode(latents, layout).keys() == tiny_zoo.splits["test"].state_dict(0).keys()
    assert sane.embed(tiny_zoo.splits["test"], pooling="concat").shape == (len(tiny_zoo.splits["test"]), 6)
    embedded = hf_sane.embed(tiny_zoo, sane, output=tmp_path / "embedded", plots=False)
    assert embedded.record.arguments["poolings"] == ["concat"]
    with pytest.raises(ValueError, match=r"layer_mean: expected an autoencoder with one latent per token"):
        sane.embed(tiny_zoo.splits["test"], pooling="layer_mean")
    tiny_zoo.splits["test"].model(0).save_pretrained(tmp_path / "network")
    large = hf_sane.embed([tmp_path / "network"], sane, output=tmp_path / "large", max_memory_bytes=1, plots=False)
    torch.testing.assert_close(torch.tensor(next(iter(large.splits.values()))["concat"][0]), latents.flatten())


def test_a_linear_code_of_as_many_numbers_stands_beside_it(sane, tiny_zoo, digits):
    linear = hf_sane.fit_linear(tiny_zoo, sane=sane)
    assert isinstance(linear.model, LinearCode)
    assert (linear.model.config.grouping, linear.model.config.latent_dim) == ("network", 6)
    found = hf_sane.reconstruct(tiny_zoo, sane, digits).to_dict()
    (row,) = found["reconstruction"].values()
    assert row["r2"] == pytest.approx(linear.record.results["reconstruction_r2"], abs=0.05)  # two steps of training
    table = hf_sane.probe(tiny_zoo, sane, linear=True, properties=["epoch"]).table["epoch"]
    poolings = {name.removeprefix("linear_") for name in table if name.startswith("linear_")}
    found = hf_sane.probe(tiny_zoo, sane, regressor="set_transformer", properties=["epoch"])
    assert "token_statistics, set_transformer" in found.table["epoch"]
    assert "sane_tokens, set_transformer" not in found.table["epoch"]
    assert "left out of set transformers, since their latents are those of whole networks: sane" in repr(found)
    assert poolings == {"mean", "concat", "decoded_distribution", "decoded_profile", "best"}


def test_networks_are_sampled_around_latents(sane, tiny_zoo, digits):
    options = {"images": digits, "num_samples": 2, "num_candidates": 4, "bandwidth": 0.1, "seed": 1}
    for code in ("sane", "linear"):
        sampled = sane.sample(tiny_zoo, code=code, refine=True, refine_steps=1, **options)
        assert len(sampled.provenance) == 2


def test_scan_says_that_it_needs_the_whole_network(sane, tiny_zoo, tmp_path):
    tiny_zoo.splits["test"].model(0).save_pretrained(tmp_path / "network")
    (scan,) = hf_sane.scan(tmp_path / "network", sane=sane).scans
    assert "expected a SANE with one latent per token, got one with 2 per network" in scan.embedding.reason


def test_networks_of_several_layouts_are_refused(sane, tiny_zoo):
    layout = tiny_zoo.splits["train"].layout(0)
    other = sane.extractor.lay_out({"fc.weight": torch.zeros(4, 5)})
    with pytest.raises(ValueError, match="expected networks of one layout for num_latents=2, got 2 layouts"):
        check_fits(sane.model, sane.extractor, {"first": layout, "second": other})
    with pytest.raises(ValueError, match="expected networks of one layout for principal components of whole networks"):
        fit_linear_code(lambda: [], [layout, other], sane.extractor, latent_dim=2, grouping="network")
