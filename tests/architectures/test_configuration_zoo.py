import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from hf_sane.architectures.configuration_zoo import CIFARResNetConfig, CNNConfig, MLPConfig

CONFIGS = {
    CNNConfig: {"conv_channels": (3, 2), "kernel_sizes": (3, 2), "pool_sizes": (2, 1), "dropout": 0.25},
    MLPConfig: {"hidden_sizes": (7, 5), "activation": "sigmoid", "initialization": "normal"},
    CIFARResNetConfig: {"depths": (1, 2), "widths": (4, 8), "shortcut": "projection", "num_channels": 1},
}


@pytest.mark.parametrize("num_labels", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("config_class", CONFIGS)
def test_files_give_the_configuration_back(tmp_path, config_class, num_labels):
    config = config_class(**CONFIGS[config_class], num_labels=num_labels)
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": loaded.name_or_path}
    assert loaded.num_labels == loaded.num_classes == num_labels
    for name, value in CONFIGS[config_class].items():
        assert getattr(loaded, name) == value
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == config_class.model_type


@pytest.mark.parametrize("config_class", CONFIGS)
def test_ten_classes_when_nothing_is_said(config_class):
    assert config_class().num_labels == 10


def test_label_names_survive(tmp_path):
    CNNConfig(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}).save_pretrained(tmp_path)
    assert CNNConfig.from_pretrained(tmp_path).id2label == {0: "cat", 1: "dog"}


def test_another_number_of_classes_replaces_generated_names_only(tmp_path):
    CNNConfig(num_labels=10).save_pretrained(tmp_path / "generated")
    assert CNNConfig.from_pretrained(tmp_path / "generated", num_labels=4).num_labels == 4
    CNNConfig(id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path / "named")
    with pytest.raises(ValueError, match="num_labels=4 contradicts the 2 names in id2label; pass id2label"):
        CNNConfig.from_pretrained(tmp_path / "named", num_labels=4)


@pytest.mark.parametrize(
    ("config_class", "misspelt", "meant"),
    [
        (CNNConfig, "kernel_size", "kernel_sizes"),
        (MLPConfig, "hidden_size", "hidden_sizes"),
        (CIFARResNetConfig, "shortcuts", "shortcut"),
        (CNNConfig, "num_label", "num_labels"),
    ],
)
def test_misspelt_keys_raise(config_class, misspelt, meant):
    with pytest.raises(TypeError, match=f"{config_class.__name__} has no field '{misspelt}'; did you mean '{meant}'"):
        config_class(**{misspelt: 1})


def test_misspelt_keys_in_a_file_raise(tmp_path):
    CNNConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("pool_sizes", "pooling_sizes"))
    with pytest.raises(TypeError, match="CNNConfig has no field 'pooling_sizes'; did you mean 'pool_sizes'"):
        CNNConfig.from_pretrained(tmp_path)


def test_a_key_like_nothing_lists_the_fields():
    with pytest.raises(TypeError, match="MLPConfig has no field 'xyz'; its fields are activation, "):
        MLPConfig(xyz=1)


@pytest.mark.parametrize(
    ("config_class", "settings"),
    [
        (CNNConfig, {"activation": "swish"}),
        (CNNConfig, {"initialization": "zeros"}),
        (CNNConfig, {"image_size": 28.0}),
        (MLPConfig, {"hidden_sizes": 20}),
        (CIFARResNetConfig, {"block": "wide"}),
        (CIFARResNetConfig, {"shortcut": "A"}),
    ],
)
def test_wrong_types_and_choices_raise(config_class, settings):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(settings))):
        config_class(**settings)
    config = config_class()
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(settings))):
        setattr(config, *next(iter(settings.items())))


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (CNNConfig, {"image_size": 0}, "image_size must be at least 1, got 0"),
        (CNNConfig, {"conv_channels": (8, 0, 4)}, r"conv_channels must be at least 1, got \(8, 0, 4\)"),
        (CNNConfig, {"kernel_sizes": (5, 5)}, "each with a kernel and a pool size.*'kernel_sizes': 2"),
        (
            CNNConfig,
            {"conv_channels": (), "kernel_sizes": (), "pool_sizes": ()},
            "at least one convolution, each with a kernel and a pool size",
        ),
        (CNNConfig, {"image_size": 14}, "an image of 14 pixels is too small.*use smaller kernels or less pooling"),
        (CNNConfig, {"dropout": 1.0}, r"dropout must lie in \[0, 1\) or be None.*got 1.0"),
        (MLPConfig, {"dropout": -0.1}, r"dropout must lie in \[0, 1\)"),
        (MLPConfig, {"hidden_sizes": (0,)}, "hidden_sizes must be at least 1"),
        (MLPConfig, {"num_labels": 0}, "num_labels must be at least 1, got 0"),
        (CIFARResNetConfig, {"depths": (3, 3)}, "each with a depth and a width"),
        (CIFARResNetConfig, {"depths": (), "widths": ()}, "at least one stage, each with a depth and a width"),
        (CIFARResNetConfig, {"widths": (16, 8, 64)}, "shortcut='identity' pads channels and cannot drop them"),
    ],
)
def test_values_that_make_no_network_raise(config_class, settings, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        config_class(**settings)


def test_projections_may_drop_channels():
    assert CIFARResNetConfig(widths=(16, 8, 64), shortcut="projection").stage_channels == (16, 16, 8, 64)
    assert CIFARResNetConfig(widths=(4, 8, 16), block="bottleneck").stage_channels == (4, 16, 32, 64)
