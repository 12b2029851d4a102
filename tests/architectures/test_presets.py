import pytest
import torch
from transformers import PreTrainedConfig

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits, cnn_l, cnn_s, mlp, resnet


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [
        (cnn_s(), 2_464),
        (cnn_s(num_channels=3), 2_864),
        (cnn_l(), 10_853),
        (cnn_digits(), 1_108),
        (mlp(image_size=8, hidden_sizes=(16,)), 64 * 16 + 16 + 16 * 10 + 10),
        (cifar_resnet(20), 269_722),  # as many as in the released file; He et al. round to 0.27 M
        (cifar_resnet(32), 464_154),
        (cifar_resnet(44), 658_586),
        (cifar_resnet(56), 853_018),
        (cifar_resnet(110), 1_727_962),
        (resnet(18), 11_173_962),
        (resnet(18, num_labels=100), 11_220_132),
        (resnet(18, num_labels=200), 11_271_432),
        (resnet(34), 21_282_122),
        (resnet(50), 23_520_842),
        (resnet(101), 42_512_970),
        (resnet(152), 58_156_618),
    ],
)
def test_parameter_counts(config, num_parameters):
    with torch.device("meta"):
        assert build_model(config).num_parameters() == num_parameters


def test_features_after_the_convolutions():
    assert (cnn_s().flattened_size, cnn_l().flattened_size, cnn_digits().flattened_size) == (36, 60, 8)


@pytest.mark.parametrize("build", [cnn_s, cnn_l, cnn_digits, mlp, cifar_resnet, resnet])
@pytest.mark.parametrize("num_labels", [2, 10, 37])
def test_every_preset_classifies(build, num_labels):
    config = build(num_labels=num_labels, **({"width": 4} if build in (cifar_resnet, resnet) else {}))
    size = getattr(config, "image_size", 16)
    logits = build_model(config).eval()(torch.randn(2, config.num_channels, size, size)).logits
    assert logits.shape == (2, num_labels)


def test_settings_override_the_preset():
    config = cnn_l(activation="relu", conv_channels=(4, 4, 4), dropout=0.5)
    assert (config.activation, config.conv_channels, config.kernel_sizes) == ("relu", (4, 4, 4), (3, 3, 3))
    assert cifar_resnet(20, width=8).widths == (8, 16, 32)
    assert cifar_resnet(20, shortcut="projection").shortcut == "projection"
    assert resnet(50, width=8).widths == (8, 16, 32, 64)


def test_resnet_18_has_the_names_of_torchvision():
    with torch.device("meta"):
        names = list(build_model(resnet(18)).state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    block = ["conv1.weight", *(f"bn1.{n}" for n in norm), "conv2.weight", *(f"bn2.{n}" for n in norm)]
    expected = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
    for stage in range(1, 5):
        for index in range(2):
            expected += [f"layer{stage}.{index}.{name}" for name in block]
            if stage > 1 and index == 0:
                prefix = f"layer{stage}.0.downsample"
                expected += [f"{prefix}.0.weight", *(f"{prefix}.1.{n}" for n in norm)]
    assert names == [*expected, "fc.weight", "fc.bias"]
    assert len(names) == 122


def test_unknown_depths_and_configurations_raise():
    with pytest.raises(
        ValueError, match=r"a CIFAR ResNet has one of \(20, 32, 44, 56, 110\) layers, got 18; see also"
    ):
        cifar_resnet(18)
    with pytest.raises(ValueError, match=r"a ResNet has one of \(18, 34, 50, 101, 152\) layers, got 20; see also"):
        resnet(20)
    with pytest.raises(
        TypeError, match="expected one of CNNConfig, MLPConfig, CIFARResNetConfig, got PreTrainedConfig"
    ):
        build_model(PreTrainedConfig())
