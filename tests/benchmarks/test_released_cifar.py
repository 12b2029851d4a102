from collections import OrderedDict

import pytest
import torch
from released_cifar import load_released_cifar_resnet, rename_released_keys

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_s
from hf_sane.records._errors import InvalidFileError


def released_file(path, model, **extra):
    """Write a network the way the released files are written."""
    state = OrderedDict(
        (f"module.{key.replace('fc.', 'linear.')}", tensor)
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )
    torch.save({"state_dict": state | extra, "best_prec1": 91.0}, path)


@pytest.mark.parametrize(
    "settings", [{"depth": 20}, {"depth": 32, "width": 4}, {"depth": 20, "width": 3, "num_labels": 7}]
)
def test_released_files_load_with_depth_width_and_classes_read_from_them(tmp_path, settings):
    model = build_model(cifar_resnet(**settings)).eval()
    released_file(tmp_path / "resnet.th", model)
    loaded = load_released_cifar_resnet(tmp_path / "resnet.th")
    assert not loaded.training
    assert loaded.config.to_dict() == model.config.to_dict()
    inputs = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded(inputs).logits, model(inputs).logits)


def test_names_of_the_real_files():
    real = ["module.conv1.weight", "module.layer1.0.bn2.running_var", "module.linear.bias"]
    renamed = rename_released_keys({key: torch.zeros(1) for key in real})
    assert list(renamed) == ["conv1.weight", "layer1.0.bn2.running_var", "fc.bias"]


def test_files_that_are_something_else_raise(tmp_path):
    torch.save([1, 2], tmp_path / "list.th")
    with pytest.raises(InvalidFileError, match=r"list.th: expected a dictionary with 'state_dict', got list"):
        load_released_cifar_resnet(tmp_path / "list.th")
    released_file(tmp_path / "cnn.th", build_model(cnn_s()))
    with pytest.raises(
        InvalidFileError, match="expected a CIFAR ResNet with conv1, layer1 to layer3 and fc, got 10 tensors"
    ):
        load_released_cifar_resnet(tmp_path / "cnn.th")
    model = build_model(cifar_resnet(20, width=2))
    released_file(tmp_path / "more.th", model, **{"module.extra": torch.zeros(1)})
    with pytest.raises(InvalidFileError, match=r"more.th: .* \['extra'\] are missing, unexpected or of another shape"):
        load_released_cifar_resnet(tmp_path / "more.th")
    with pytest.raises(
        ValueError, match=r"two keys of the checkpoint map to 'fc.bias', the second being 'module.linear.bias'"
    ):
        rename_released_keys({"fc.bias": torch.zeros(1), "module.linear.bias": torch.zeros(1)})


class Payload:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code ran')",))


def test_pickles_cannot_run_code(tmp_path):
    torch.save({"state_dict": Payload()}, tmp_path / "evil.th")
    with pytest.raises(InvalidFileError, match="weights_only=True"):
        load_released_cifar_resnet(tmp_path / "evil.th")
