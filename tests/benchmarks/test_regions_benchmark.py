"""The record of regions, on tiny zoos and made-up adapters."""

import json

import pytest
import regions
import torch
from safetensors.torch import save_file
from sklearn.linear_model import Ridge

from hf_sane.architectures.presets import cnn_digits
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings


@pytest.fixture(scope="module")
def zoos(digits, tmp_path_factory):
    """Two zoos that differ in name."""
    root = tmp_path_factory.mktemp("zoos")
    for name in ("plain", "other"):
        arguments = ZooSettings(
            name=name, num_models=6, epochs=1, keep_epochs=[1], split_shares=[0.2, 0.4, 0.4], progress_bar=False,
            train_limit=64, validation_limit=32, test_limit=64,
        )  # fmt: skip
        build_zoo(arguments, digits, root / name)
    return [str(root / name) for name in ("plain", "other")]


def write_adapters(folder):
    """Two adapters of the same two layers, one in each style."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(*shape, generator=generator) for _ in "ab" for shape in ((2, 6), (6, 2), (2, 6), (6, 2))]
    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    names = [f"{block}.to_{kind}_lora.{side}.weight" for kind in "qk" for side in ("down", "up")]
    save_file(dict(zip(names, draws[:4], strict=True)), folder / "diffusers.safetensors")
    numbered = [f"unet:{index}:{side}" for index in (0, 1) for side in ("down", "up")] + ["text_encoder:0:down"]
    more = [*draws[4:], draws[0], draws[1]]
    save_file(dict(zip([*numbered, "text_encoder:0:up"], more, strict=True)), folder / "numbered.safetensors")


def test_the_record(zoos, tmp_path):
    states = [StackedNetworks.initialize(cnn_digits(), [seed]).state_dict(0) for seed in (0, 1)]
    SANEFeatureExtractor(token_dim=73).fit(states).save_pretrained(tmp_path / "sane")
    config = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    SANEModel(SANEConfig(token_dim=73, window_size=52, **config)).save_pretrained(tmp_path / "sane")
    write_adapters(tmp_path)
    small = [
        "--num-models",
        "3",
        "--shuffled-networks",
        "2",
        "--epochs",
        "1",
        "--ancestor-epochs",
        "1",
        "--num-points",
        "3",
    ]
    report = regions.main([
        "--zoo", *zoos, "--tasks", json.dumps({"plain": "one", "other": "two"}), "--sane", str(tmp_path / "sane"),
        "--adapters", str(tmp_path), *small,
        "--picture", str(tmp_path / "map.png"), "--output", str(tmp_path / "r.json"),
    ])  # fmt: skip
    assert len(report["spaces"]) == 5
    assert report["spaces"]["fine_tuned"].keys() == {"data_set", "task", "general"}
    assert report["interiors"]["fine_tuned"]["general"].keys() == {"true labels"}
    assert report["interiors"]["independent"]["task"]["one"]["line"]["count"] == 3
    assert report["adapters"]["adapters"] == ["diffusers", "numbered"]
    assert report["adapters"]["by_shape"]["6 x 6"]["layers"] == 2
    assert (tmp_path / "map.png").exists()
    assert RunRecord.load(tmp_path / "r.json").results["spaces"].keys() == report["spaces"].keys()


def test_a_refitted_layer_against_scikit_learn(digits):
    networks = StackedNetworks.initialize(cnn_digits(), [0, 1])
    found = regions.refitted_accuracy(networks, digits)
    for index, accuracy in enumerate(found.tolist()):
        model = networks.model(index)
        width = model.classifier.in_features
        model.classifier = torch.nn.Identity()
        with torch.no_grad():
            train, test = (model(digits.split(name)[0]).logits.double() for name in ("train", "test"))
        centred = train - train.mean(dim=0)
        penalty = regions.RIDGE * centred.square().mean().item() * len(train)
        assert width == train.shape[1]
        wanted = torch.nn.functional.one_hot(digits.train_labels, 10).double()
        predicted = Ridge(alpha=penalty, solver="cholesky").fit(train, wanted).predict(test).argmax(1)
        assert accuracy == pytest.approx((predicted == digits.test_labels.numpy()).mean(), abs=0.011)
