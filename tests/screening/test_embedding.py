"""The embedding of a scan: that of the whole network where it was read whole, and otherwise near it."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hf_sane
from hf_sane.screening import _embedding
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.shared import BUNDLE


def sane(token_layout: str = "rowwise", token_dim: int = 24) -> SANE:
    torch.manual_seed(0)
    config = hf_sane.SANEConfig(
        token_dim=token_dim,
        hidden_size=16,
        latent_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        window_size=64,
        position_embedding="sinusoidal",
    )
    extractor = hf_sane.SANEFeatureExtractor(token_dim=token_dim, token_layout=token_layout, normalization="none")
    return SANE(hf_sane.SANEModel(config).eval(), extractor)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Kernels, vectors, rows of less, exactly and more than a token, with and without biases."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 5), nn.BatchNorm2d(20), nn.Linear(24, 30), nn.Linear(300, 200, bias=False), nn.Linear(6, 40)
    )


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("token_dim", [7, 24, 100])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_of_a_network_that_is_read_whole_it_is_exact(token_layout, token_dim, suffix, network, tmp_path, monkeypatch):
    monkeypatch.setattr(_embedding, "MAX_TOKENS", 2**15)
    path, state_dict = tmp_path / f"model.{suffix}", network.state_dict()
    save_file(state_dict, path) if suffix == "safetensors" else torch.save(state_dict, path)
    autoencoder = sane(token_layout, token_dim)
    (scan,) = hf_sane.scan(path, sane=autoencoder).scans
    found = scan.embedding
    assert (found.error, found.tokens_read) == (0.0, found.num_tokens)
    torch.testing.assert_close(torch.tensor(found.vector), autoencoder.embed(path), rtol=1e-4, atol=1e-5)


def test_experts_in_one_tensor_and_packed_integers_do_not_change_it(tmp_path):
    torch.manual_seed(0)
    tensors = {"mlp.experts.up": torch.randn(4, 30, 20), "out.weight": torch.randn(5, 30), "out.bias": torch.randn(5)}
    save_file(tensors | {"packed": torch.randint(9, (40, 30))}, tmp_path / "moe.safetensors")
    autoencoder = sane()
    (scan,) = hf_sane.scan(tmp_path / "moe.safetensors", sane=autoencoder).scans
    whole = autoencoder.embed(tmp_path / "moe.safetensors")
    torch.testing.assert_close(torch.tensor(scan.embedding.vector), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
def test_of_a_sample_it_is_as_near_as_its_error_says(token_layout, tmp_path, monkeypatch):
    monkeypatch.setattr(_embedding, "MAX_TOKENS", 400)
    generator = torch.Generator().manual_seed(0)
    tensors = {  # rows on different scales, whose tokens have different latents
        f"{name}.weight": torch.randn(rows, 500, generator=generator) * (1 + torch.arange(rows)[:, None] / rows)
        for name, rows in (("a", 300), ("b", 200))
    }
    save_file(tensors, tmp_path / "model.safetensors")
    autoencoder = sane(token_layout)
    whole = autoencoder.embed(tmp_path / "model.safetensors")
    distances, errors = [], []
    for seed in range(8):
        found = hf_sane.scan(tmp_path / "model.safetensors", sane=autoencoder, budget="10%", seed=seed)
        embedding = found.scans[0].embedding
        assert 100 < embedding.tokens_read < 0.1 * embedding.num_tokens
        distances.append((torch.tensor(embedding.vector) - whole).norm().item())
        errors.append(embedding.error)
    assert "standard error" in str(found)
    spread, said = (torch.tensor(values).square().mean().sqrt().item() for values in (distances, errors))
    assert said / 2 < spread < 2 * said


@pytest.mark.parametrize("makes", [lambda zoo, folder: zoo, lambda zoo, folder: folder], ids=["a zoo", "embeddings"])
def test_the_nearest_of_an_index_is_the_network_itself(makes, tiny_zoo, tiny_zoo_folder, tmp_path):
    autoencoder = sane(token_dim=73)
    embedded = hf_sane.embed(tiny_zoo, autoencoder, output=tmp_path / "index", align=False, plots=False)
    assert embedded.splits
    split = tiny_zoo.splits["test"]
    save_file(split.state_dict(0), tmp_path / "unknown.safetensors")
    index = makes(tiny_zoo_folder, tmp_path / "index")
    result = hf_sane.scan(tmp_path / "unknown.safetensors", sane=autoencoder, index=index)
    nearest = result.to_dict()["scans"][0]["nearest"]
    name = f"{split.run_ids[0]}, epoch {split.column('epoch')[0]}"
    assert nearest[0] == {"name": name, "distance": pytest.approx(0, abs=1e-5)}
    assert len(nearest) == 5
    assert nearest[1]["distance"] > 1e-3
    assert f"nearest: {name} (" in str(result)


def test_the_nearest_by_fingerprint_is_the_network_itself(tiny_zoo, tiny_zoo_folder, tmp_path):
    hf_sane.index_networks(tiny_zoo_folder, tmp_path / "index")
    split = tiny_zoo.splits["test"]
    save_file(split.state_dict(0), tmp_path / "unknown.safetensors")
    result = hf_sane.scan(tmp_path / "unknown.safetensors", index=tmp_path / "index")
    name, distance = result.nearest[str(tmp_path / "unknown.safetensors")][0]
    assert name.endswith(f"{split.run_ids[0]}, epoch {split.column('epoch')[0]}")
    assert distance == pytest.approx(0, abs=1e-5)
    assert "nearest: " in str(result)


def test_the_sane_of_the_package_embeds_what_fits_it_and_is_silent_about_the_rest(network, tmp_path):
    anchor = BUNDLE / "anchors" / "anchor_0"
    fitting = hf_sane.scan(anchor)
    torch.testing.assert_close(
        torch.tensor(fitting.scans[0].embedding.vector),
        SANE.from_pretrained(BUNDLE).embed(anchor),
        rtol=1e-4,
        atol=1e-5,
    )
    assert f"embedded by {BUNDLE.name} from 170 of 170 tokens, standard error 0" in str(fitting)
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    other = hf_sane.scan(tmp_path / "other.safetensors")
    assert "embedded" not in str(other)
    assert "no statistics" in other.scans[0].embedding.reason
    assert "not embedded by" in str(hf_sane.scan(tmp_path / "other.safetensors", sane=BUNDLE))


def test_what_is_not_finite_is_not_embedded(network, tmp_path):
    broken = network.state_dict() | {"2.bias": torch.full((30,), torch.nan)}
    save_file(broken, tmp_path / "broken.safetensors")
    (scan,) = hf_sane.scan(tmp_path / "broken.safetensors", sane=sane()).scans
    assert (scan.embedding.vector, scan.embedding.reason) == ((), "NaN or infinite weights in 2")


def test_an_index_of_other_embeddings_is_refused(tmp_path):
    (tmp_path / "index").mkdir()
    anchor = BUNDLE / "anchors" / "anchor_0"
    with pytest.raises(ValueError, match="expected a zoo, or embeddings, got no parquet files"):
        hf_sane.scan(anchor, index=tmp_path / "index")
    hf_sane.embed([anchor], sane(token_dim=73), output=tmp_path / "embedded", plots=False)
    with pytest.raises(ValueError, match="expected an index of embeddings of 64 numbers, got 8"):
        hf_sane.scan(anchor, index=tmp_path / "embedded")
