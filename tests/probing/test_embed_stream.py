"""Token streams agree with `encode`, their embeddings with those of whole networks, in little memory."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._accumulation import STREAM_POOLINGS
from hf_sane.probing._embeddings import embed_tokens
from hf_sane.probing._poolings import pool_latents
from hf_sane.probing._streaming import embed_checkpoint, embed_stream
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream, stream_if_large

MODEL = SANEModel(
    SANEConfig(
        token_dim=24, hidden_size=12, latent_dim=6, num_hidden_layers=1, num_attention_heads=2, window_size=17,
        position_embedding="sinusoidal",
    )
).eval()  # fmt: skip


def networks():
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=12,
    )  # fmt: skip
    return {
        "cnn": build_model(cnn_digits()),
        "resnet": build_model(cifar_resnet(20, width=3)),
        "bert": BertModel(bert),
        "double": torch.nn.Linear(5, 7).double(),
    }


NETWORKS = networks()


@pytest.fixture(params=["state dict", "file", "shards"])
def source(request, tmp_path):
    def make(network):
        if request.param == "state dict":
            return network.state_dict()
        if request.param == "file":
            save_file(network.state_dict(), tmp_path / "model.safetensors")
            return tmp_path / "model.safetensors"
        names = list(network.state_dict())
        files = {}
        for part, chosen in enumerate((names[::2], names[1::2])):
            save_file({name: network.state_dict()[name] for name in chosen}, tmp_path / f"part-{part}.safetensors")
            files |= dict.fromkeys(chosen, f"part-{part}.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        return tmp_path

    return make


@pytest.mark.parametrize("max_scalars", [1, 50, 10**9])
@pytest.mark.parametrize("normalization", ["none", "standardize"])
@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_stream_gives_the_tokens_of_encode_to_the_last_bit(name, token_layout, normalization, max_scalars, source):
    network = NETWORKS[name]
    extractor = SANEFeatureExtractor(token_dim=24, token_layout=token_layout, normalization=normalization).fit(
        [network]
    )
    where = source(network)
    whole = extractor.encode(where)
    stream = TokenStream(where, extractor, max_scalars=max_scalars)
    blocks = list(stream)
    assert torch.equal(torch.cat([block.tokens.to(whole.tokens.dtype) for block in blocks]), whole.tokens)
    assert torch.equal(torch.cat([block.positions for block in blocks]), whole.positions)
    assert all(set(block.positions[:, 1].tolist()) == {block.layer} for block in blocks)
    assert len(stream) == len(whole.tokens) == sum(stream.layer_sizes)
    if max_scalars == 1:
        assert len(blocks) > len(whole.layout.layers)


@pytest.mark.parametrize(
    ("halo_size", "batch_size", "window_size"), [(0, 64, None), (4, 3, None), (2, 1, 9), (0, 5, 10_000)]
)
@pytest.mark.parametrize("name", ["cnn", "resnet", "bert"])
def test_an_embedding_of_a_stream_is_that_of_the_whole(name, halo_size, batch_size, window_size):
    network = NETWORKS[name]
    extractor = SANEFeatureExtractor(token_dim=24).fit([network])
    sequence = extractor.encode(network)
    options = {"halo_size": halo_size, "batch_size": batch_size, "window_size": window_size}
    found = embed_stream(MODEL, TokenStream(network, extractor, max_scalars=100), poolings=STREAM_POOLINGS, **options)
    expected = embed_tokens(MODEL, sequence.layout, sequence.tokens[None], poolings=STREAM_POOLINGS, **options)
    for pooling in STREAM_POOLINGS:
        torch.testing.assert_close(found[pooling], expected[pooling][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        found["layer_mean"],
        pool_latents(torch.randn(1, len(sequence), 6), sequence.layout, "layer_mean")[0],
        atol=1e-2,
    )


@pytest.mark.parametrize(
    "poolings", [["mean"], ["layer_mean_std", "mean"], ["mean", "concat"], ["spectrum_distribution"]]
)
def test_a_checkpoint_is_streamed_when_it_is_large_and_sums_are_enough(source, poolings):
    network = NETWORKS["cnn"]
    where, extractor = source(network), SANEFeatureExtractor(token_dim=24).fit([network])
    layout, whole = embed_checkpoint(MODEL, extractor, where, poolings=poolings, halo_size=2)
    same_layout, streamed = embed_checkpoint(
        MODEL, extractor, where, poolings=poolings, halo_size=2, max_memory_bytes=100
    )
    assert same_layout == layout
    assert streamed.keys() == whole.keys() == set(poolings)
    for name in poolings:
        torch.testing.assert_close(streamed[name], whole[name], rtol=1e-4, atol=1e-5)
    assert stream_if_large(where, extractor, max_memory_bytes=100) is not None
    assert stream_if_large(where, extractor) is None


def test_what_is_never_streamed(tmp_path):
    extractor = SANEFeatureExtractor(token_dim=24, normalization="none")
    torch.save(NETWORKS["cnn"].state_dict(), tmp_path / "network.pt")
    assert stream_if_large(tmp_path / "network.pt", extractor, max_memory_bytes=0) is None
    with torch.device("meta"):
        network = build_model(cnn_digits())
    with pytest.raises(ValueError, match="tensors without values .meta device"):
        embed_checkpoint(MODEL, extractor, network, max_memory_bytes=0)
    with pytest.raises(ValueError, match=r"expected poolings among mean, .*, got \['max'\]"):
        embed_checkpoint(MODEL, extractor, NETWORKS["cnn"], poolings=["max"])
    with pytest.raises(ValueError, match="expected poolings among .*, got none"):
        embed_checkpoint(MODEL, extractor, NETWORKS["cnn"], poolings=[])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_reconstructions_do_not_depend_on_the_batch_size(batch_size):
    extractor = SANEFeatureExtractor(token_dim=24).fit([NETWORKS["resnet"]])
    sequence = extractor.encode(NETWORKS["resnet"])
    results = []
    for size in (16, batch_size):
        latents = MODEL.encode_sequences(sequence.tokens[None], sequence.positions, halo_size=4, batch_size=size)
        results.append(MODEL.decode_sequences(latents, sequence.positions, halo_size=4, batch_size=size))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_the_model_is_left_in_the_mode_it_was_in():
    extractor = SANEFeatureExtractor(token_dim=24, normalization="none")
    model = SANEModel(MODEL.config).train()
    embed_stream(model, TokenStream(NETWORKS["cnn"], extractor))
    assert model.training


def test_errors(tmp_path):
    extractor = SANEFeatureExtractor(token_dim=24, normalization="none")
    stream = TokenStream(NETWORKS["cnn"], extractor)
    with pytest.raises(
        ValueError, match=r"expected poolings among .*, got \['concat'\]; the others require all latents"
    ):
        embed_stream(MODEL, stream, poolings=["concat"])
    with pytest.raises(ValueError, match="expected poolings among .*, got none"):
        embed_stream(MODEL, stream, poolings=[])
    with pytest.raises(ValueError, match="expected max_scalars >= 1, got 0"):
        TokenStream(NETWORKS["cnn"], extractor, max_scalars=0)
    with pytest.raises(
        ValueError,
        match="NaN or infinite weights in b, or weights that overflow when normalised; leave this network out",
    ):
        list(TokenStream({"a.weight": torch.ones(2, 3), "b.weight": torch.tensor([[float("inf")]])}, extractor))
    broken = {"a.weight": torch.ones(500, 3), "b.weight": torch.full((500, 3), float("nan"))}
    with pytest.raises(ValueError, match="NaN or infinite weights in b"):  # raised while another batch is encoded
        embed_stream(MODEL, TokenStream(broken, extractor), batch_size=1)
    large = {"a.weight": torch.full((4, 4), 3e38)}  # whose sum is infinite
    assert torch.equal(next(iter(TokenStream(large, extractor))).tokens[:, :4], large["a.weight"])
    with pytest.raises(ValueError, match="needs statistics"):
        TokenStream(NETWORKS["cnn"], SANEFeatureExtractor(token_dim=24))


MEASURE = """
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)  # whose scratch memory would count
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._streaming import embed_stream
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream


def anonymous():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


model = SANEModel(
    SANEConfig(token_dim=4096, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2, window_size=64,
               position_embedding="sinusoidal")
)
extractor = SANEFeatureExtractor(token_dim=4096, normalization="none")
encode, peak = model.encode, 0


def watched(*arguments):
    global peak
    peak = max(peak, anonymous())
    return encode(*arguments)


embed_stream(model, TokenStream({"w": torch.zeros(512, 4096)}, extractor))  # what is allocated once
before = anonymous()
model.encode = watched
embed_stream(model, TokenStream(Path(sys.argv[1]), extractor, max_scalars=2**20), batch_size=2)
print(peak - before)
"""


def test_memory_stays_small_for_a_large_checkpoint(tmp_path):
    """256 MB of weights, of which one tensor holds half, in less than a sixth of that."""
    size = 2**25
    save_file(
        {"a.weight": torch.zeros(size // 4096, 4096), "b.weight": torch.ones(size // 2048, 2048)},
        tmp_path / "model.safetensors",
    )
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        # What is freed goes back to the system at once, so that only what is held counts: otherwise the allocator
        # keeps between 5 and 25 MB that nobody uses, and the figure depends on how threads meet.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 40 * 2**20
