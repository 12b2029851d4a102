"""Sampling beside its baselines: equal numbers, one start for all, nothing chosen on test images."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from zoo_recipes import seed_zoo

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.sampling._comparison import (
    METHODS,
    NOT_CONDITIONED,
    ComparisonSettings,
    draw_samples,
)
from hf_sane.sampling._diversity import (
    REALIGNED,
    WeightSpace,
    measure_distances,
    nearest_training_distance,
    rms_distances,
    training_distances,
)
from hf_sane.sampling._finetuning import finetune_all
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.sampling._selection import Judge
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._alignment import align_zoo, aligned_tokens
from hf_sane.zoo.building._build import build_zoo

SETTINGS = {"bandwidth": [0.1, 0.5], "num_candidates": 8, "num_samples": 2, "top_fraction": 0.5}


def small_codec(zoo):
    split = zoo.splits["train"]
    layout = split.layout(0)
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    torch.manual_seed(0)
    config = SANEConfig(
        token_dim=layout.token_dim,
        hidden_size=16,
        latent_dim=layout.token_dim,
        num_hidden_layers=1,
        num_attention_heads=2,
        window_size=32,
        position_embedding="sinusoidal",
        initializer_range=1e-3,
    )
    return NetworkCodec(SANEModel(config).eval(), extractor, layout, split.config(0))


def test_every_method_gives_as_many_networks(tiny_zoo, digits):
    codec = small_codec(tiny_zoo)
    samples = draw_samples(
        codec, tiny_zoo, Judge.of_images(*digits.split("validation")), ComparisonSettings(**SETTINGS)
    )
    assert tuple(samples.methods) == tuple(METHODS)
    assert all(networks.num_models == 2 for networks in samples.methods.values())
    assert samples.bandwidth in SETTINGS["bandwidth"]
    assert samples.facts["num_anchors"] == len(samples.anchor_ids) == 4
    training = aligned_tokens(tiny_zoo.splits["train"])
    nearest, rebuilt, pairwise = measure_distances(codec, training, samples.methods, linear=samples.linear).values()
    for name in ("anchors", "nearest_training"):
        assert nearest[name] == pytest.approx(0, abs=1e-6)
    for name in ("anchor_noise", "shaped_noise"):
        assert nearest[name] == pytest.approx(nearest["sane_subsampled"], rel=0.3)
    assert 0 < nearest["interpolation"] <= nearest["sane_subsampled"] * 1.1
    assert pairwise["scratch"] > pairwise["sane_kde"] > 0
    for name in ("reconstructed_anchors", "linear_reconstructed"):  # far from what was trained, and yet nothing new
        assert rebuilt[name] == pytest.approx(0, abs=1e-6)
    assert rebuilt["shaped_noise"] == nearest["shaped_noise"]  # no code: networks are their own reconstructions
    again = draw_samples(codec, tiny_zoo, Judge.of_images(*digits.split("validation")), ComparisonSettings(**SETTINGS))
    for name, networks in samples.methods.items():
        assert all(torch.equal(tensor, again.methods[name].tensors[key]) for key, tensor in networks.tensors.items())
    curves = finetune_all(samples.methods, digits, {"learning_rate": 3e-3}, epochs=1)
    assert {name: [len(row) for row in rows] for name, rows in curves.items()} == {name: [2, 2] for name in METHODS}
    own = samples.methods["anchors"].evaluate(*digits.split("test"))[1]
    assert curves["anchors"][0] == pytest.approx(own.tolist())


def test_the_linear_code_is_sampled_as_the_sane_is(tiny_zoo, digits):
    """A SANE on the linear path with as many latents as weights, and a linear code of full rank, decode alike."""
    codec, judge = small_codec(tiny_zoo), Judge.of_images(*digits.split("validation"))
    samples = draw_samples(codec, tiny_zoo, judge, ComparisonSettings(**SETTINGS), methods=["linear_reconstructed"])
    assert list(samples.methods) == ["linear_reconstructed"]
    assert samples.facts["linear"]["bandwidth"] in SETTINGS["bandwidth"]
    anchors = aligned_tokens(tiny_zoo.splits["train"].final_epochs())
    found = codec.tokens(samples.methods["linear_reconstructed"])  # nothing is lost: these are the two best runs
    assert rms_distances(found.flatten(1), anchors.flatten(1)).amin(dim=1) == pytest.approx(0, abs=1e-5)


def test_few_prompts_of_an_early_epoch(tiny_zoo, digits):
    settings = ComparisonSettings(**{**SETTINGS, "num_samples": 4, "num_anchors": 3, "epoch": 3})
    samples = draw_samples(small_codec(tiny_zoo), tiny_zoo, Judge.of_images(*digits.split("validation")), settings)
    assert len(samples.anchor_ids) == 3
    anchors = samples.methods["anchors"]
    assert anchors.num_models == 4
    for tensor in anchors.tensors.values():
        assert torch.equal(tensor[0], tensor[3])  # three prompts serve four rows: the first comes twice
        assert not torch.equal(tensor[0], tensor[1])


def test_batch_norm_is_conditioned_for_all_but_trained_networks(digits, tmp_path):
    zoo = build_zoo(
        seed_zoo(
            architecture="cifar_resnet",
            architecture_settings={"width": 2},
            num_models=6,
            epochs=1,
            keep_epochs=[1],
            train_limit=64,
            split_shares=[0.67, 0.17, 0.16],
            progress_bar=False,
        ),
        digits,
        tmp_path,
    )
    zoo = align_zoo(zoo)
    codec = small_codec(zoo)
    found = {}
    for name, images in {"plain": None, "conditioned": digits.train_images}.items():
        shown = [part[:20] for part in digits.split("validation")]
        judge = Judge.of_images(*shown, conditioning_images=images, num_batches=2, batch_size=8)
        settings = ComparisonSettings(top_fraction=1.0, bandwidth=[0.1], num_candidates=4, num_samples=2)
        found[name] = draw_samples(codec, zoo, judge, settings).methods
    for method in METHODS.keys() - {"nearest_training"}:  # others are near to other samples
        name = "bn1.running_var" if "bn1.running_var" in found["plain"][method].tensors else None
        name = name or next(key for key in found["plain"][method].tensors if key.endswith("running_var"))
        same = torch.equal(found["plain"][method].tensors[name], found["conditioned"][method].tensors[name])
        assert same == (method in NOT_CONDITIONED), method


@pytest.mark.parametrize("num_training", [1, REALIGNED])
def test_a_permuted_training_network_is_at_no_distance(num_training, codec, raw_tokens, noisy_copies):
    training = raw_tokens[:num_training]
    spec = permutation_spec(codec.config)
    tensors = codec.networks(training).tensors
    moved = spec.apply(tensors, spec.random(len(training), generator=torch.Generator().manual_seed(2)), batch_dims=1)
    permuted = StackedNetworks(codec.config, {name: moved[name] for name in tensors})
    space = WeightSpace.fit(codec.layout, training)
    assert training_distances(codec, space, permuted, training) == pytest.approx(0, abs=1e-6)
    assert nearest_training_distance(space, codec.tokens(permuted), training).min() > 0.1
    other = training_distances(codec, space, noisy_copies(training, 0.1), training)
    assert other.shape == (num_training,)
    assert other.min() > 0.01


def test_settings_out_of_range():
    with pytest.raises(StrictDataclassClassValidationError, match="got num_samples=5 and num_candidates=8"):
        ComparisonSettings(num_samples=5, num_candidates=8)
    with pytest.raises(StrictDataclassClassValidationError, match="expected bandwidth > 0"):
        ComparisonSettings(bandwidth=[0.0, 0.1])
