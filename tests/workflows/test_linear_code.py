"""A linear code is fitted to a zoo, saved, and used wherever a SANE is."""

import pytest
import torch

import hf_sane
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.tokenization._linear_code import fit_linear_code
from hf_sane.workflows.linear_code import LinearCodeSettings, run_fit_linear
from hf_sane.zoo._alignment import aligned_tokens


@pytest.fixture(scope="module")
def folder(tiny_zoo_folder, tmp_path_factory):
    """Folder of a code of full rank."""
    output = tmp_path_factory.mktemp("linear") / "code"
    run_fit_linear(LinearCodeSettings(zoo=[tiny_zoo_folder], latent_dim=73, output=output))
    return output


def test_a_result_saves_the_code(tiny_zoo, tmp_path):
    result = run_fit_linear(LinearCodeSettings(zoo=[tiny_zoo], latent_dim=4, output=None)).save(tmp_path / "code")
    saved = hf_sane.SANE.from_pretrained(result.output)
    assert saved.record.results == result.record.results
    split = tiny_zoo.splits["test"]
    torch.testing.assert_close(saved.embed(split), result.sane.embed(split))


def test_a_code_of_full_rank_gives_networks_back(folder, tiny_zoo):
    linear = hf_sane.SANE.from_pretrained(folder)
    assert isinstance(linear.model, LinearCode)
    assert linear.record.results["reconstruction_r2"] == pytest.approx(1, abs=1e-6)
    network = tiny_zoo.splits["test"].state_dict(0)
    decoded = linear.decode(*linear.encode(network))
    assert decoded.keys() == network.keys()
    for name, tensor in network.items():
        torch.testing.assert_close(decoded[name], tensor, atol=1e-5, rtol=1e-4)


def test_it_embeds_reconstructs_and_has_a_card(folder, tiny_zoo, digits):
    linear = hf_sane.SANE.from_pretrained(folder)
    assert linear.embed(tiny_zoo).shape == (48, 73)
    found = hf_sane.reconstruct(tiny_zoo, linear, digits).to_dict()
    assert found["reconstruction_r2"] == pytest.approx(1, abs=1e-6)
    (row,) = found["reconstruction"].values()
    assert row["accuracy_kept"] == pytest.approx(1, abs=1e-3)
    card = (folder / "README.md").read_text()
    assert "A linear code for the weights of neural networks" in card
    assert "grouping" in card


def test_it_takes_tokens_and_latents_from_a_sane(tiny_zoo):
    """Principal components of the aligned training tokens of each kind of layer, as many as the SANE has latents."""
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    extractor = hf_sane.SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    config = hf_sane.SANEConfig(token_dim=layout.token_dim, hidden_size=16, latent_dim=6, num_attention_heads=2)
    linear = hf_sane.fit_linear(tiny_zoo, sane=hf_sane.SANE(hf_sane.SANEModel(config), extractor))
    assert linear.extractor is extractor
    found = linear.record.results["reconstruction"]["train"]  # what the command prints
    assert found["networks"] == len(split)
    assert 0 < found["r2"] < 1
    assert linear.model.config.latent_dim == 6
    assert linear.model.config.groups == [0, 0, 0, 1, 1]  # convolutions, linear maps
    tokens = extractor.normalize(aligned_tokens(split), layout)[:, layout.layer_index >= 3].flatten(0, 1).double()
    values = torch.linalg.svdvals(tokens - tokens.mean(0)).square()
    latents = linear.model.encode_sequences(tokens[None].float(), torch.tensor([[0, 3, 0]]).expand(len(tokens), 3))
    torch.testing.assert_close(latents[0].double().square().sum(0), values[:6], rtol=1e-4, atol=0)


def test_layers_of_several_kinds_are_not_mixed(tiny_zoo):
    layouts = [tiny_zoo.splits["train"].layout(0)]
    other = hf_sane.SANEFeatureExtractor(73).lay_out({"fc.weight": torch.zeros(4, 5)})
    with pytest.raises(ValueError, match=r"layer 0 is of kind 'conv' in some networks and 'linear' in others"):
        fit_linear_code(lambda: [], [*layouts, other], hf_sane.SANEFeatureExtractor(73), latent_dim=2)


def test_networks_are_sampled_in_it(folder, tiny_zoo, digits):
    """`code="linear"` fits it to the zoo; a saved code is sampled like a SANE."""
    options = {"images": digits, "num_samples": 2, "num_candidates": 4, "bandwidth": 0.1, "seed": 1}
    linear = hf_sane.SANE.from_pretrained(folder)
    saved = linear.sample(tiny_zoo, **options)
    fitted = linear.sample(tiny_zoo, code="linear", **options)  # of the same zoo and tokens: the same code
    assert [origin.method for origin in fitted.provenance] == ["subsampled in the linear code"] * 2
    assert next(iter(fitted.comparison)) == "linear_subsample"
    for name, row in saved.comparison.items():
        assert row == pytest.approx(fitted.comparison[name], abs=1e-4)
    rebuilt = saved.comparison["reconstructed_anchors"]
    assert rebuilt["nearest_training_distance"] == pytest.approx(0, abs=1e-4)  # full rank
    with pytest.raises(ValueError, match="expected a zoo .* to fit the linear code to"):
        linear.sample([tiny_zoo.splits["train"].model(0)], code="linear", **options)


def test_probes_read_it(tiny_zoo, folder):
    found = hf_sane.probe(tiny_zoo, folder, linear=True, poolings=["mean"], properties=["epoch"]).table["epoch"]
    assert list(found) == ["weights", "layer_statistics", "sane_mean", "linear_mean", "sane_best", "linear_best"]
    assert found["linear_mean"].r2 == pytest.approx(found["sane_mean"].r2, abs=1e-3)  # the "SANE" is that code
