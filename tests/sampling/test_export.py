import json

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_sane.architectures.presets import build_model, cifar_resnet
from hf_sane.hub._publish import save_network
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._export import Provenance, check_saved
from hf_sane.sampling._generation import Density

PROVENANCE = Provenance(
    method="kde",
    sane_model="someone/sane-digits",
    zoo="someone/digits-zoo",
    anchors=("run-1", "run-2"),
    seed=3,
    index=0,
    bandwidth=0.1,
    bandwidth_unit="anchor_std",
    mode="joint",
    validation_accuracy=0.75,
    notes={"rounds": [1, 2]},
)


@pytest.fixture(scope="module")
def sampled(codec, raw_tokens) -> StackedNetworks:
    generator = torch.Generator().manual_seed(0)
    return codec.decode(Density(0.1).sample(codec.encode(raw_tokens), 3, generator=generator))


def exported(networks, index, folder, *, provenance=PROVENANCE):
    """Save a network, and load it again."""
    model = networks.model(index)
    save_network(folder, model, RunRecord(command="x"), provenance=provenance)
    return check_saved(model, folder)


def test_saved_network_is_an_ordinary_model(sampled, data, tmp_path):
    images, labels = data.split("test")
    loaded = exported(sampled, 1, tmp_path / "new" / "network")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "new" / "network")
    output = again(pixel_values=images, labels=labels)
    torch.testing.assert_close(output.logits, sampled.logits(images)[1], rtol=1e-5, atol=1e-5)
    assert (output.logits.argmax(dim=1) == labels).float().mean() > 0.6
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, sampled.tensors[name][1])
    assert not loaded.training
    names = {path.name for path in (tmp_path / "new" / "network").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "provenance.json",
        "run.json",
        "README.md",
        "hf_sane_manifest.json",
    }


def test_provenance_survives(sampled, tmp_path):
    exported(sampled, 0, tmp_path)
    assert Provenance.load(tmp_path) == PROVENANCE
    assert json.loads((tmp_path / "provenance.json").read_text())["anchors"] == ["run-1", "run-2"]


def test_batch_norm_networks_save_their_statistics(tmp_path):
    networks = StackedNetworks.initialize(cifar_resnet(20, width=2, num_labels=2), [0])
    networks.tensors["bn1.running_mean"].fill_(0.5)
    networks.tensors["bn1.num_batches_tracked"].fill_(9)
    loaded = exported(networks, 0, tmp_path, provenance=Provenance("scratch"))
    assert loaded.bn1.running_mean.tolist() == [0.5, 0.5]
    assert loaded.bn1.num_batches_tracked == 9


def test_loaded_networks_fine_tune(sampled, data, config, tmp_path):
    models = [exported(sampled, i, tmp_path / str(i), provenance=PROVENANCE) for i in range(3)]
    stacked = StackedNetworks.from_state_dicts(config, [model.state_dict() for model in models])
    hyper_parameters = HyperParameters.repeat([0, 1, 2], learning_rate=1e-2)
    before, after = train_stacked(config, stacked.tensors, data, hyper_parameters, epochs=2, keep_epochs=(0, 2))
    assert (after.train_loss < before.train_loss).all()
    fresh = StackedNetworks.initialize(config, [50, 51, 52])
    (scratch,) = train_stacked(config, fresh.tensors, data, hyper_parameters, epochs=2)
    assert after.train_loss.mean() < scratch.train_loss.mean()


def test_what_reads_back_differently_is_reported(sampled, tmp_path, monkeypatch):
    model_class = type(build_model(sampled.config))

    def corrupted(folder):
        model = build_model(sampled.config)
        model.load_state_dict(sampled.state_dict(0))
        with torch.no_grad():
            model.classifier.bias += 1
        return model

    monkeypatch.setattr(model_class, "from_pretrained", corrupted)
    with pytest.raises(
        RuntimeError, match=r"the loaded network differs from the saved one in tensors \['classifier.bias'\]"
    ):
        exported(sampled, 0, tmp_path)


def test_errors(sampled, trained, config, tmp_path):
    loaded = exported(
        StackedNetworks(build_model(config), trained.tensors), 0, tmp_path / "module", provenance=PROVENANCE
    )
    assert torch.equal(next(iter(loaded.state_dict().values())), next(iter(trained.tensors.values()))[0])
    with pytest.raises(FileNotFoundError, match=r"no provenance.json in .*; expected the folder of a sampled network"):
        Provenance.load(tmp_path / "nothing")
