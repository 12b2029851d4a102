import pytest
import torch
from torch import nn

from hf_sane.architectures.presets import build_model, cnn_l, cnn_s, resnet
from hf_sane.core._layout import Layout
from hf_sane.core._token_layouts import TensorSpec


def shapes_of(config):
    with torch.device("meta"):
        return build_model(config).state_dict()


@pytest.mark.parametrize(
    ("config", "token_dim", "batch_norm", "num_tokens"),
    [
        (cnn_s(), 201, "tokens", 48),
        (cnn_l(), 289, "tokens", 93),
        (resnet(18, num_labels=10), 288, "template", 39_124),
        (resnet(18, num_labels=100), 288, "template", 39_304),
        (resnet(18, num_labels=200), 288, "template", 39_504),
        (resnet(18, num_labels=10), 288, "tokens", 53_524),
    ],
)
def test_token_counts_of_the_paper(config, token_dim, batch_norm, num_tokens):
    layout = Layout.from_state_dict(shapes_of(config), token_dim=token_dim, batch_norm=batch_norm)
    assert layout.num_tokens == num_tokens == len(layout.positions) == len(layout.weight_mask)


def test_cnn_l_is_mostly_padding():
    layout = Layout.from_state_dict(shapes_of(cnn_l()), token_dim=289)
    assert layout.num_weights == 10_853
    assert layout.padding_share == pytest.approx(0.6, abs=0.01)
    dense = Layout.from_state_dict(shapes_of(cnn_l()), token_dim=289, token_layout="dense")
    assert dense.num_weights == 10_853
    assert dense.padding_share < 0.1


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("token_dim", range(1, 14))
def test_geometry_follows_from_naive_counting(token_layout, token_dim):
    state_dict = {
        "a.weight": torch.zeros(3, 2, 2),
        "a.bias": torch.zeros(3),
        "scalar": torch.zeros(()),
        "n.weight": torch.zeros(4),
    }
    layout = Layout.from_state_dict(state_dict, token_dim=token_dim, token_layout=token_layout, order="given")
    rows = [(0, c, 5) for c in range(3)] + [(1, 0, 1)] + [(2, c, 1) for c in range(4)]
    if token_layout == "dense":
        rows = [(0, 0, 15), (1, 0, 1), (2, 0, 4)]
    expected = []
    for layer, channel, length in rows:
        for chunk in range(-(-length // token_dim)):
            real = min(token_dim, length - chunk * token_dim)
            expected.append((layer, channel if token_layout == "rowwise" else chunk, real))
    assert layout.positions.tolist() == [[n, layer, channel] for n, (layer, channel, _) in enumerate(expected)]
    assert layout.weight_mask.sum(dim=1).tolist() == [real for *_, real in expected]
    assert all(mask[:real].all() for mask, (*_, real) in zip(layout.weight_mask, expected, strict=True))
    assert layout.num_weights == 20


def test_every_tensor_is_in_a_layer_an_alias_or_the_template():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
            self.pos_embed = nn.Parameter(torch.randn(1, 5, 6))
            self.gamma = nn.Parameter(torch.randn(6))
            self.logit_scale = nn.Parameter(torch.tensor(2.0))
            self.attention = nn.MultiheadAttention(6, 2)
            self.norm = nn.LayerNorm(6)
            self.batch_norm = nn.BatchNorm1d(6)
            self.embed = nn.Embedding(7, 6)
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("flags", torch.ones(2, dtype=torch.bool))

    state_dict = Odd().state_dict()
    layout = Layout.from_state_dict(state_dict, token_dim=4)
    in_layers = [spec.name for layer in layout.layers for spec in layer.tensors]
    assert sorted([*in_layers, *layout.aliases, *layout.template]) == sorted(state_dict)
    assert layout.aliases == {"head.weight": "embed.weight"}
    assert set(layout.template) == {"empty", "flags", "batch_norm.num_batches_tracked"}
    kinds = {layer.name: layer.kind for layer in layout.layers}
    assert kinds["batch_norm.running_mean"] == kinds["batch_norm.running_var"] == "running_statistics"
    assert kinds["norm"] == kinds["batch_norm"] == "norm"
    assert kinds["embed"] == kinds["cls_token"] == kinds["pos_embed"] == "embedding"
    assert kinds["attention.in_proj"] == kinds["attention.out_proj"] == "attention"
    assert kinds["gamma"] == kinds["logit_scale"] == "other"
    biased = {layer.name for layer in layout.layers if layer.bias is not None}
    assert biased == {"attention.in_proj", "attention.out_proj", "norm", "batch_norm"}


def test_batch_norm_is_found_by_its_statistics_not_by_its_name():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm(2))
    layout = Layout.from_state_dict(model.state_dict(), token_dim=9, batch_norm="template")
    assert {name.partition(".")[0] for name in layout.template} == {"1"}
    assert [layer.name for layer in layout.layers] == ["0", "2"]


def test_signature_is_of_the_structure_not_of_the_values():
    first, second = ({"w.weight": torch.randn(2, 3), "steps": torch.tensor(n)} for n in (1, 2))
    one, two = (Layout.from_state_dict(s, token_dim=3) for s in (first, second))
    assert one.signature == two.signature
    assert one == two
    other = Layout.from_state_dict({"w.weight": torch.randn(3, 2), "steps": torch.tensor(1)}, token_dim=3)
    assert other.signature != one.signature
    assert Layout.from_state_dict(first, token_dim=2).signature != one.signature


def test_json_round_trip():
    state_dict = build_model(resnet(18, width=4)).state_dict()
    layout = Layout.from_state_dict(state_dict, token_dim=36, batch_norm="template")
    again = Layout.from_dict(layout.to_dict(), layout.template)
    assert again == layout
    assert again.signature == layout.signature
    assert Layout.from_dict(layout.to_dict()).template["bn1.running_var"].shape == (4,)


def test_template_of_another_network_is_refused():
    layout = Layout.from_state_dict({"w.weight": torch.ones(2, 2), "n": torch.tensor(3)}, token_dim=2)
    with pytest.raises(ValueError, match="template does not fit: expected .*'n'"):
        Layout.from_dict(layout.to_dict(), {"m": torch.tensor(3)})


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"token_dim": 0}, "expected token_dim >= 1 and batch_norm 'tokens' or 'template', got 0 and 'tokens'"),
        ({"token_dim": 4, "batch_norm": "drop"}, "got 4 and 'drop'"),
        ({"token_dim": 4, "token_layout": "dence"}, "one of rowwise, dense, got 'dence'; did you mean 'dense'"),
        ({"token_dim": 4, "token_layout": ["dense"]}, r"one of rowwise, dense, got \['dense'\]"),
    ],
)
def test_unknown_choices_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        Layout.from_state_dict({"w": torch.ones(2)}, **choice)


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), [1.0, 2.0]])
def test_what_cannot_be_tokens_is_refused(value):
    with pytest.raises(TypeError, match="expected a dense real tensor for 'w'"):
        Layout.from_state_dict({"w": value}, token_dim=2)


@pytest.mark.parametrize("state_dict", [{}, {"n": torch.tensor(3)}, {"w": torch.zeros(0, 4)}])
def test_a_network_without_weights_is_refused(state_dict):
    with pytest.raises(ValueError, match="no floating-point weights among"):
        Layout.from_state_dict(state_dict, token_dim=2)


def test_spec_counts_scalars():
    assert TensorSpec.of("w", torch.zeros(2, 3, dtype=torch.bfloat16)) == TensorSpec("w", (2, 3), "bfloat16")
    assert TensorSpec.of("w", torch.zeros(())).numel == 1


@pytest.mark.parametrize(("token_layout", "most"), [("rowwise", 9), ("dense", 6)])
def test_positions_that_tables_need(token_layout, most):
    state_dict = {"a.weight": torch.zeros(3, 5), "b.weight": torch.zeros(9, 2), "b.bias": torch.zeros(9)}
    layout = Layout.from_state_dict(state_dict, token_dim=5, token_layout=token_layout)
    sizes = [part.stop - part.start for part in layout.token_slices]
    assert layout.max_positions == [sum(sizes), 2, most]


def test_positions_are_real_even_where_networks_are_made_on_the_meta_device():
    with torch.device("meta"):
        layout = Layout.from_state_dict({"a.weight": torch.empty(5, 7)}, token_dim=3)
        positions = layout.positions
    assert positions.device.type == layout.weight_mask.device.type == "cpu"
    assert positions[:, 0].tolist() == list(range(layout.num_tokens))
