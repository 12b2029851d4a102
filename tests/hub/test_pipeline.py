"""`pipeline("weight-feature-extraction")`: locally, and with everything on a Hub."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import hf_sane
from hf_sane._auto_classes import register_auto_classes
from hf_sane.architectures.presets import build_model, cnn_digits, cnn_s
from hf_sane.hub._pipeline import TASK, WeightFeatureExtractionPipeline
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._accumulation import STREAM_POOLINGS
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._poolings import POOLINGS
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [build_model(config) for config in (cnn_digits(), cnn_s(), cnn_digits())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, networks):
    """A SANE folder for both architectures, a network, and another version of it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("pipeline")
    extractor = SANEFeatureExtractor(token_dim=73).fit(networks)
    config = SANEConfig(
        token_dim=73,
        hidden_size=8,
        latent_dim=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        window_size=20,
        initialization="paper",
        initializer_range=0.5,  # so that untrained attention looks at its neighbours
    )
    save_sane(folder / "sane", SANEModel(config), extractor, RunRecord(command="x"))
    for name, network in (("network", networks[0]), ("other", networks[2])):
        save_network(folder / name, network, RunRecord(command="x"))
    return folder


@pytest.fixture(scope="module")
def embed(folder):
    return pipeline(TASK, model=str(folder / "sane"))


def test_the_task_is_registered_once(embed):
    before = PIPELINE_REGISTRY.supported_tasks[TASK]
    register_auto_classes()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] is before
    assert type(embed) is WeightFeatureExtractionPipeline
    assert not embed.model.training
    assert hf_sane.SANEModel is type(embed.model)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_embedding_is_what_embed_networks_gives(embed, networks, pooling):
    raw = SANEFeatureExtractor(token_dim=73, normalization="none").encode(networks[0])
    expected = embed_networks(
        *(embed.model, embed.feature_extractor, raw.layout, raw.tokens[None]), poolings=[pooling], halo_size=3
    )
    found = embed(networks[0], pooling=pooling, halo_size=3)
    assert found.ndim == 1
    torch.testing.assert_close(found, expected[pooling][0])


def test_every_kind_of_source_gives_the_same(embed, networks, folder, tmp_path):
    network = networks[0]
    expected = embed(network)
    assert expected.shape == (4,)
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    torch.save(network.state_dict(), tmp_path / "network.pt")
    for source in (
        *(network.state_dict(), tmp_path / "network.safetensors", str(tmp_path / "network.pt"), folder / "network"),
        AutoModelForImageClassification.from_pretrained(folder / "network"),
    ):
        torch.testing.assert_close(embed(source), expected)


def sharded(network, folder):
    folder.mkdir()
    network.save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("pooling", POOLINGS)
def test_large_networks_are_streamed_with_the_same_result(embed, networks, tmp_path, pooling, monkeypatch):
    options = {"pooling": pooling, "halo_size": 3}
    expected = embed(networks[0], **options)
    source, read = sharded(networks[0], tmp_path / "net"), []
    encode = SANEFeatureExtractor.encode
    monkeypatch.setattr(SANEFeatureExtractor, "encode", lambda *a, **k: read.append(a) or encode(*a, **k))
    for network in (source, str(source), networks[0], networks[0].state_dict()):
        found = embed([networks[1], network], max_memory_bytes=0, batch_size=2, **options)[1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert bool(read) == (pooling not in STREAM_POOLINGS)  # the others need all latents at once
    torch.testing.assert_close(embed(source, **options), expected)  # small ones are not
    assert read


def test_pickles_are_never_streamed(embed, networks, tmp_path):
    torch.save(networks[0].state_dict(), tmp_path / "network.pt")
    torch.testing.assert_close(embed(tmp_path / "network.pt", max_memory_bytes=0), embed(networks[0]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, None])
def test_a_list_of_several_architectures_comes_back_in_order(embed, networks, batch_size):
    found = embed([*networks, networks[0]], batch_size=batch_size)
    for vector, network in zip(found, [*networks, networks[0]], strict=True):
        torch.testing.assert_close(vector, embed(network))
    assert not torch.allclose(found[0], found[2])
    assert torch.equal(embed(tuple(networks))[1], embed(networks)[1])


def test_long_networks_go_through_in_windows(embed, networks):
    whole = embed(networks[0], window_size=52)
    windows = embed(networks[0])  # 52 tokens in windows of 20
    assert not torch.allclose(whole, windows)
    torch.testing.assert_close(embed(networks[0], window_size=200), whole)
    assert not torch.allclose(embed(networks[0], halo_size=5), windows)


def test_settings_of_the_pipeline_are_defaults_of_the_call(folder, embed, networks):
    set_before = pipeline(TASK, model=str(folder / "sane"), pooling="concat", halo_size=2, batch_size=2)
    assert torch.equal(set_before(networks)[1], embed(networks[1], pooling="concat", halo_size=2))
    assert torch.equal(set_before(networks[0], pooling="mean"), embed(networks[0], halo_size=2))


def test_embeddings_can_train_a_probe(embed, networks):
    probe = torch.nn.Linear(4, 1)
    probe(torch.stack(embed(networks))).sum().backward()
    assert probe.weight.grad.abs().sum() > 0


def test_bad_inputs_are_refused(embed, networks, folder, tmp_path):
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in networks[0].state_dict().items()}
    strange = build_model(cnn_digits(conv_channels=(3, 3, 3)))
    with pytest.raises(TypeError, match="expected a state dict, module, path or Hub repo id, got int"):
        embed(3)
    with pytest.raises(ValueError, match="expected at least one network, got an empty list"):
        embed([])
    with pytest.raises(ValueError, match=r"expected pooling to be one of mean, .*, got 'max'"):
        embed(networks[0], pooling="max")
    with pytest.raises(
        TypeError, match=r"unknown arguments of weight-feature-extraction: \['poolings'\]; expected pooling"
    ):
        embed(networks[0], poolings="mean")
    with pytest.raises(TypeError, match="expected one argument, got 2; pass networks as a list"):
        embed(networks[0], networks[1])
    with pytest.raises(ValueError, match="NaN or infinite weights"):
        embed([networks[0], broken])
    with pytest.raises(KeyError, match="the extractor was fitted on another layout"):
        embed(strange)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        embed(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="window_size > 2 \\* halo_size"):
        embed(networks[0], halo_size=10)
    network = AutoModelForImageClassification.from_pretrained(folder / "network")
    with pytest.raises(
        TypeError, match="expected a SANE autoencoder, got CNNForImageClassification, a network to embed"
    ):
        WeightFeatureExtractionPipeline(network, feature_extractor=embed.feature_extractor, task=TASK, device=-1)


def test_sane_and_networks_from_a_hub(embed, folder, local_hub, monkeypatch):
    def files(name):
        return {path.name: path.read_bytes() for path in (folder / name).iterdir() if path.is_file()}

    monkeypatch.delenv("HF_TOKEN")
    local_hub.storage.add_files("models", "org/sane-cnn", files("sane"))
    repository = local_hub.storage.add_files("models", "org/network", files("other"))
    repository.tags["other"] = repository.head.sha
    local_hub.storage.add_files("models", "org/network", files("network"))
    remote = pipeline(TASK, model="org/sane-cnn")
    both = remote(["org/network", folder / "network"], pooling="layer_mean")
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[0], embed(folder / "network", pooling="layer_mean"))
    assert not torch.equal(remote("org/network"), remote("org/network", input_revision="other"))
    for revision in (None, "other"):
        streamed = remote("org/network", input_revision=revision, max_memory_bytes=0)
        torch.testing.assert_close(streamed, remote("org/network", input_revision=revision))
    with pytest.raises(OSError, match="no such repository on the Hub"):
        remote("org/nothing")
