"""What each operation does to axes: small networks around one operation, and the permutations that stay free.

Tracing runs every spec in float64 before it returns it, so what is expected here must hold as well as be found.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_sane.symmetry.tracing._trace import trace_permutations


class Network(nn.Module):
    """Layers by name, and a function of them and the inputs."""

    def __init__(self, function, **layers):
        super().__init__()
        self.layers, self.function = nn.ModuleDict(layers), function

    def forward(self, inputs):
        return self.function(self.layers, inputs)


def vectors(*shape):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))


def dense(middle, *, width=6, after=None):
    """A hidden layer of `width` units, something in the middle, and a layer that reads what comes out."""
    layers = {"first": nn.Linear(5, width), "last": nn.Linear(after or width, 2)}
    return Network(lambda m, x: m["last"](middle(torch.tanh(m["first"](x)))), **layers), vectors(5)


def conv(middle, *, width=6, after=None, **layers):
    """The same for images: two convolutions around something, then the mean over places."""
    layers |= {"first": nn.Conv2d(2, width, 3, padding=1), "last": nn.Conv2d(after or width, 2, 1)}
    function = lambda m, x: m["last"](middle(m, torch.tanh(m["first"](x)))).mean((2, 3))  # noqa: E731
    return Network(function, **layers), vectors(2, 6, 6)


def attention(scores):
    """Two heads of three dimensions; `scores(q, k, v)` attends."""

    def function(m, x):
        q, k, v = (m[name](x).view(3, 4, 2, 3).transpose(1, 2) for name in "qkv")
        return m["o"](scores(q, k, v).transpose(1, 2).reshape(3, 4, 6)).mean(1)

    return Network(function, **{n: nn.Linear(5, 6) for n in "qkv"}, o=nn.Linear(6, 2)), vectors(4, 5)


def grouped_attention(m, x):
    q = m["q"](x).view(3, 4, 4, 3).transpose(1, 2)
    k, v = (m[name](x).view(3, 4, 2, 3).transpose(1, 2) for name in "kv")
    found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True)
    return m["o"](found.transpose(1, 2).flatten(2)).mean(1)


def bilinear_heads(m, x):
    """Every head of one side with every head of the other: dimensions are shared by all heads."""
    left, right = m["left"](x).view(3, 2, 3), m["right"](x).view(3, 3, 4)
    return m["last"](torch.matmul(left, right).flatten(1))


def shuffled(m, values):
    """The channel shuffle of ShuffleNet between two grouped convolutions."""
    values = m["one"](values)
    return m["two"](values.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2))


ATTENTION = [2, *[3] * 4]  # heads; inside each head once for queries and keys, once for values
CASES = {
    "glu": (dense(F.glu, width=12, after=6), [6]),
    "gated by chunks": (dense(lambda v: F.silu(v.chunk(2, -1)[0]) * v.chunk(2, -1)[1], width=12, after=6), [6]),
    "split unevenly": (dense(lambda v: v.split([2, 4], -1)[1], after=4), [2, 4]),
    "slice": (dense(lambda v: v[:, 1:-1], after=4), [4]),
    "slice in steps": (dense(lambda v: torch.cat([v[:, ::2], v[:, 1::2]], -1)), [3]),
    "interleaved gates": (dense(lambda v: F.silu(v[:, ::2]) * v[:, 1::2], width=12, after=6), [6]),
    "slice in uneven steps": (dense(lambda v: v[:, 1::4], after=2), None),
    "slice in late steps": (dense(lambda v: v[:, 2::2], after=2), None),
    "select": (dense(lambda v: v[:, 2:3] + v[:, 3, None], after=1), None),
    "flip": (dense(lambda v: v.flip(-1)), None),
    "cumulative sum": (dense(lambda v: v.cumsum(-1)), None),
    "entries by index": (dense(lambda v: v[:, torch.tensor([0, 2, 1, 3, 5, 4])]), None),
    "gather": (dense(lambda v: v.gather(1, torch.tensor([[0, 2, 1, 3, 5, 4]]).expand(3, 6))), None),
    "index select": (dense(lambda v: v.index_select(1, torch.tensor([0, 2, 1, 3, 5, 4]))), None),
    "sorted": (dense(lambda v: v.sort(-1).values), None),
    "softmax": (dense(lambda v: v.softmax(-1)), [6]),
    "largest": (dense(lambda v: v * v.amax(-1, keepdim=True) - v.mean()), [6]),
    "largest and its place": (dense(lambda v: v * v.max(0, keepdim=True).values + v.max()), [6]),
    "place of the largest": (dense(lambda v: v + v.argmax(-1, keepdim=True)), None),
    "largest of two": (dense(lambda v: torch.max(v, v.detach().flip(0))), [6]),
    "where": (dense(lambda v: torch.where(v > 0, v, torch.zeros_like(v) - 1)), [6]),
    "norm": (dense(lambda v: v / v.norm(dim=-1, keepdim=True)), [6]),
    "repeat": (dense(lambda v: v.repeat(1, 2), after=12), [6, *[2] * 6]),
    "repeat each": (dense(lambda v: v.repeat_interleave(2, dim=1), after=12), [6, *[2] * 6]),
    "expand": (dense(lambda v: v.unsqueeze(1).expand(3, 4, 6).flatten(1), after=24), [6, *[4] * 6]),
    "stack and unbind": (dense(lambda v: torch.stack([v, v * v], 1).unbind(1)[1]), [6]),
    "stack and flatten": (dense(lambda v: torch.stack([v, v * v], 1).flatten(1), after=12), [6]),
    "squeeze": (dense(lambda v: v.unsqueeze(1).unsqueeze(0).squeeze(0).squeeze()), [6]),
    "with itself": (dense(lambda v: (v.unsqueeze(1) * v.unsqueeze(2)).flatten(1), after=36), None),
    "gram": (dense(lambda v: v @ (v.T @ v)), [6]),
    "einsum": (dense(lambda v: torch.einsum("bi,ci->bc", v, v) @ v), [6]),
    "einsum with dots": (dense(lambda v: torch.einsum("...i,...i->...", v, v)[:, None], after=1), None),
    "einsum without arrow": (dense(lambda v: torch.einsum("bi,ci", v, v), after=3), None),
    "scaled dot product": (attention(F.scaled_dot_product_attention), ATTENTION),
    "matmul attention": (attention(lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v), ATTENTION),
    "einsum attention": (
        attention(
            lambda q, k, v: torch.einsum("bhls,bhsd->bhld", torch.einsum("bhld,bhsd->bhls", q, k).softmax(-1), v)
        ),
        ATTENTION,
    ),
    "masked attention": (
        attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(4, 4).tril().bool())),
        ATTENTION,
    ),
    "grouped attention": (
        (
            Network(grouped_attention, q=nn.Linear(5, 12), k=nn.Linear(5, 6), v=nn.Linear(5, 6), o=nn.Linear(12, 2)),
            vectors(4, 5),
        ),
        [2, *[2] * 2, *[3] * 4],
    ),
    "all heads with all": (
        (Network(bilinear_heads, left=nn.Linear(5, 6), right=nn.Linear(5, 12), last=nn.Linear(8, 2)), vectors(5)),
        [2, 3, 4],
    ),
    "transposed convolution": (conv(lambda m, v: m["up"](v), up=nn.ConvTranspose2d(6, 4, 2), after=4), [6, 4]),
    "grouped transposed convolution": (
        conv(lambda m, v: m["up"](v), up=nn.ConvTranspose2d(6, 4, 2, groups=2), after=4),
        [2, 3, 3, 2],
    ),
    "channel shuffle": (
        conv(shuffled, one=nn.Conv2d(6, 6, 1, groups=2), two=nn.Conv2d(6, 6, 1, groups=3)),
        [2, 3, 3, *[2] * 3],  # groups of the first, groups of the second; inputs and outputs inside them
    ),
    "instance norm": (conv(lambda m, v: m["norm"](v), norm=nn.InstanceNorm2d(6, affine=True)), [6]),
    "prelu": (conv(lambda m, v: m["slope"](v), slope=nn.PReLU(6)), [6]),
    "one slope": (conv(lambda m, v: m["slope"](v), slope=nn.PReLU()), [6]),
    "max pooling": (conv(lambda m, v: F.max_pool2d(v, 2, return_indices=True)[0]), [6]),
    "interpolation": (conv(lambda m, v: F.interpolate(v, scale_factor=2, mode="bilinear")), [6]),
    "padded channels": (conv(lambda m, v: F.pad(v, (0, 0, 0, 0, 2, 2)), after=10), [6, 4]),
    "cropped channels": (conv(lambda m, v: F.pad(v, (0, 0, 0, 0, -1, -1)), after=4), None),
    "reflected places": (conv(lambda m, v: F.pad(v, (1, 1, 1, 1), mode="reflect")), [6]),
    "pixel shuffle": (conv(lambda m, v: F.pixel_shuffle(v, 2), width=8, after=2), None),
    "rolled places": (conv(lambda m, v: v.roll((1, 1), (2, 3))), [6]),
    "moved dimensions": (conv(lambda m, v: m["norm"](v.movedim(1, -1)).permute(0, 3, 1, 2), norm=nn.RMSNorm(6)), [6]),
    "layer norm": (conv(lambda m, v: m["norm"](v.flatten(2).mT).mT.view(v.shape), norm=nn.LayerNorm(6)), [6]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_stays_free(name):
    (model, inputs), expected = CASES[name]
    torch.manual_seed(0)
    if expected is None:
        with pytest.raises(ValueError, match="has no permutation symmetry that could be proven"):
            trace_permutations(model, inputs)
    else:
        spec = trace_permutations(model, inputs)
        assert sorted(free.size for free in spec.generators.values() if free.size > 1) == sorted(expected)


def test_addmm_and_baddbmm():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
            self.second, self.last = nn.Parameter(torch.randn(1, 6, 4)), nn.Linear(4, 2)
            self.offset = nn.Parameter(torch.randn(1, 1, 4))

        def forward(self, inputs):
            hidden = torch.addmm(self.bias, inputs, self.first).tanh()
            return self.last(torch.baddbmm(self.offset, hidden.unsqueeze(0), self.second).tanh()[0])

    spec = trace_permutations(Products(), vectors(5))
    assert sorted(spec.sizes.values()) == [4, 6]
    assert spec.axes["first"][1] == spec.axes["bias"][0]
    assert spec.axes["offset"][2] == spec.axes["second"][2]


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_recurrent_layers_stay_and_are_named():
    model = Network(lambda m, x: m["last"](m["lstm"](x)[0][:, -1]), lstm=nn.LSTM(4, 3), last=nn.Linear(3, 6))
    with pytest.raises(ValueError, match=r"used in an unsupported way \(lstm\)"):
        trace_permutations(model, vectors(2, 4))


def test_an_unbatched_convolution_is_not_understood():
    model = Network(lambda m, x: m["conv"](x).mean((1, 2)), conv=nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match="has no permutation symmetry that could be proven"):
        trace_permutations(model, vectors(6, 6))
