"""Which scalar of which tensor sits where in a token sequence: the structure of a network, without its weights."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hf_sane.core.layer_kinds import LAYER_KINDS, LayerKind, is_batch_norm, possible_kinds, statistics_kind
from hf_sane.core.names import canonical_key, root_key
from hf_sane.records.documents import Entry

TokenLayout = Literal["rowwise", "dense"]
BatchNormStorage = Literal["tokens", "template"]
LayerOrder = Literal["names", "given"]
MAX_NUMEL = 2**63 - 1  # what torch can count


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype (`"float32"`) of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TensorSpec":
        """Describe `tensor`, which may live on the meta device."""
        return cls(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Tensors that are tokenised together: rows `[channels, fan_in | bias]`.

    Attributes:
        name: Common prefix of its tensors (`layer1.0.conv1`), or the whole name of a tensor that stands alone.
        kind: What it is, guessed from names and shapes. It changes no token, so layers that differ in nothing else are equal.
        weight: The tensor that gives the rows.
        bias: Its sibling with one scalar per channel, appended as the last column; or `None`.
    """

    name: str
    kind: LayerKind = field(compare=False)
    weight: TensorSpec
    bias: TensorSpec | None = None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Weight and, where there is one, bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def channels(self) -> int:
        """Rows; a 0-d tensor is one row."""
        return self.weight.shape[0] if self.weight.shape else 1

    @property
    def row_length(self) -> int:
        """Scalars per row, bias included."""
        return math.prod(self.weight.shape[1:]) + (self.bias is not None)

    @property
    def num_weights(self) -> int:
        """Scalars, bias included."""
        return self.channels * self.row_length

    def num_tokens(self, token_layout: TokenLayout, token_dim: int) -> int:
        """Tokens that the layer takes."""
        if token_layout == "rowwise":
            return self.channels * math.ceil(self.row_length / token_dim)
        return math.ceil(self.num_weights / token_dim)


@dataclass(frozen=True)
class Layout:
    """Where each scalar of a network sits in its token sequence.

    `rowwise` is the paper's (arXiv:2406.09997, section 3): every output channel is a row `[fan_in | bias]`, padded with
    zeros to a multiple of `token_dim` and cut. `dense` flattens `[weight | bias]` of a layer first and pads once
    (GeoSANE, arXiv:2603.23408). Unlike the released code, which takes only names that contain "weight", every floating
    tensor is covered; what cannot be a weight (integer and bool buffers, tensors without elements) and, on request,
    BatchNorm tensors travel in `template`.

    Attributes:
        token_layout: `"rowwise"` or `"dense"`.
        token_dim: Scalars per token, `D`.
        batch_norm: Whether BatchNorm tensors become tokens or stay in the template.
        layers: In the order of their tokens.
        tensor_names: All names, in the order of the state dict.
        aliases: Other names of a shared tensor to the one that it goes by (`root_key`).
        template: Tensors that are carried as they are. Its values take no part in comparison or `signature`.
    """

    token_layout: TokenLayout
    token_dim: int
    batch_norm: BatchNormStorage
    layers: tuple[LayerSpec, ...]
    tensor_names: tuple[str, ...]
    aliases: Mapping[str, str]
    template: Mapping[str, Tensor] = field(compare=False, default_factory=dict)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        token_dim: int,
        token_layout: TokenLayout = "rowwise",
        batch_norm: BatchNormStorage = "tokens",
        order: LayerOrder = "names",
        ties: Mapping[str, str] | None = None,
    ) -> "Layout":
        """Lay out a network.

        Args:
            state_dict: Tensors by name; only names, shapes, dtypes and sharing of memory matter, so meta tensors will do.
            token_dim: Scalars per token, >= 1.
            token_layout: `"rowwise"` or `"dense"`.
            batch_norm: `"tokens"`, or `"template"` to leave BatchNorm (affine and running statistics) out of the tokens.
            order: `"names"`, the canonical order (`canonical_key`), which is the same for a file, a state dict in any order and
                a module; or `"given"`, that of the state dict, where it is known to be that of the network.
            ties: Of shared tensors, the names that files leave out, where their module says so.

        Raises:
            ValueError: For an unknown choice, `token_dim < 1`, or no floating-point weights.
            TypeError: For complex tensors or values that are no tensors.
        """
        if token_dim < 1 or token_layout not in ("rowwise", "dense") or batch_norm not in ("tokens", "template"):
            raise ValueError(
                "expected token_dim >= 1, token_layout 'rowwise' or 'dense' and batch_norm 'tokens' or 'template', got "
                f"{token_dim}, {token_layout!r} and {batch_norm!r}"
            )
        if order not in ("names", "given"):
            raise ValueError(f"expected order 'names' or 'given', got {order!r}")
        for name, tensor in state_dict.items():
            if not isinstance(tensor, Tensor) or _unfit(tensor):
                raise TypeError(
                    f"expected a dense real tensor for {name!r}, got {_describe(tensor)}; convert it (dequantize, to_dense) or drop it"
                )
        aliases = _shared(state_dict, ties or {})
        in_template = {n for n, t in state_dict.items() if not t.is_floating_point() or t.numel() == 0}
        if batch_norm == "template":
            in_template |= {n for n in state_dict if is_batch_norm(n, state_dict)}
        names = sorted(state_dict, key=canonical_key) if order == "names" else list(state_dict)
        specs = {n: TensorSpec.of(n, state_dict[n]) for n in names if n not in in_template and n not in aliases}
        if not specs:
            raise ValueError(
                f"no floating-point weights among {len(state_dict)} tensors; is this a network's state dict?"
            )
        return cls(
            token_layout=token_layout,
            token_dim=token_dim,
            batch_norm=batch_norm,
            layers=_group(specs),
            tensor_names=tuple(state_dict),
            aliases=aliases,
            template={n: state_dict[n].detach().clone() for n in state_dict if n in in_template and n not in aliases},
        )

    @cached_property
    def _geometry(self) -> "_Geometry":
        with torch.device("cpu"):  # also where a network is made on the meta device, for its structure alone
            return _geometry(self.token_layout, self.token_dim, self.layers)

    @cached_property
    def token_slices(self) -> tuple[slice, ...]:
        """The tokens of each layer."""
        return _token_slices(self.token_layout, self.token_dim, self.layers)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the whole network, `N`."""
        return sum(layer.num_tokens(self.token_layout, self.token_dim) for layer in self.layers)

    @property
    def max_positions(self) -> list[int]:
        """Positions that learned tables need for the whole network: tokens, layers, most channels of a layer."""
        return [largest + 1 for largest in self.positions.amax(dim=0).tolist()]

    @cached_property
    def num_weights(self) -> int:
        """Real scalars in the tokens."""
        return sum(layer.num_weights for layer in self.layers)

    @property
    def padding_share(self) -> float:
        """Share of token entries that hold no weight."""
        return 1 - self.num_weights / (self.num_tokens * self.token_dim)

    @property
    def weight_mask(self) -> Tensor:
        """`[N, D]` bool, `True` where a real weight sits. Shared between networks of one structure: read-only."""
        return self._geometry.weight_mask

    @property
    def places(self) -> "tuple[Place, ...]":
        """Where each tensor sits in the tokens, in the order of the layers."""
        return self._geometry.places

    @property
    def paddings(self) -> "tuple[Place, ...]":
        """The parts of the tokens that hold no weight."""
        return self._geometry.paddings

    @property
    def layer_index(self) -> Tensor:
        """`[N]` int64: layer of each token. Shared: read-only."""
        return self._geometry.positions[:, 1]

    @property
    def positions(self) -> Tensor:
        """`[N, 3]` int64: token index, layer index, channel index (in `dense`: index of the token within its layer).

        Shared: read-only.
        """
        return self._geometry.positions

    @cached_property
    def signature(self) -> str:
        """SHA-256 (hex) of the structure: equal for networks whose tokens mean the same.

        Template values do not count, nor does the place of template tensors among the others: a file may sort its names.
        """
        structure = self._structure() | {"tensor_names": sorted(self.tensor_names)}
        for entry, layer in zip(structure["layers"], self.layers, strict=True):
            entry["kind"] = statistics_kind(layer.weight.name, layer.weight.shape)
        structure["template"] = sorted(structure["template"], key=lambda entry: entry["name"])
        return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()

    def _structure(self) -> dict[str, Any]:
        return {
            "token_layout": self.token_layout,
            "token_dim": self.token_dim,
            "batch_norm": self.batch_norm,
            "layers": [asdict(layer) for layer in self.layers],
            "tensor_names": list(self.tensor_names),
            "aliases": dict(self.aliases),
            "template": [asdict(TensorSpec.of(name, tensor)) for name, tensor in self.template.items()],
        }

    def to_dict(self) -> dict[str, Any]:
        """The structure as JSON can hold it; template tensors give name, shape and dtype only (see `from_dict`)."""
        return json.loads(json.dumps(self._structure()))

    @classmethod
    def from_dict(cls, structure: Mapping[str, Any], template: Mapping[str, Tensor] | None = None) -> "Layout":
        """Rebuild a layout.

        Args:
            structure: What `to_dict` gave.
            template: Template tensors; zeros of their shapes when `None`.

        Raises:
            InvalidFileError: If the structure is not one of a layout.
            ValueError: If `template` does not fit the structure.
        """
        return cls.from_entry(Entry(structure, "layout", remedy="pass what to_dict() gave"), template)

    @classmethod
    def from_entry(cls, structure: Entry, template: Mapping[str, Tensor] | None = None) -> "Layout":
        """Like [`from_dict`], from a file: what is wrong is named with file and field.

        Raises:
            InvalidFileError, ValueError: As there.
        """
        specs = [_read_spec(entry) for entry in structure["template"].entries()]
        if template is None:  # one zero, seen from everywhere: a file may claim any size
            template = {s.name: torch.zeros((), dtype=getattr(torch, s.dtype)).expand(s.shape) for s in specs}
        if [TensorSpec.of(n, t) for n, t in template.items()] != specs:
            raise ValueError(
                f"template does not fit: expected {[(s.name, s.shape, s.dtype) for s in specs]}, got "
                f"{[(n, tuple(t.shape), str(t.dtype)) for n, t in template.items()]}"
            )
        layers = tuple(_read_layer(entry) for entry in structure["layers"].entries())
        if not layers:
            structure["layers"].fail("one layer at least")
        aliases = {name: entry.text() for name, entry in structure["aliases"].items()}
        stored = [spec.name for layer in layers for spec in layer.tensors] + [spec.name for spec in specs]
        for alias, target in structure["aliases"].items():
            if target.value not in stored or alias in stored:
                target.fail("another name of a tensor of this layout")
        names = [entry.text() for entry in structure["tensor_names"].entries()]
        if sorted(names) != sorted([*stored, *aliases]) or len(set(names)) != len(names):
            structure["tensor_names"].fail("every tensor of layers, template and aliases once", got=sorted(names)[:5])
        layout = cls(
            token_layout=structure["token_layout"].one_of(get_args(TokenLayout)),
            token_dim=structure["token_dim"].whole(at_least=1),
            batch_norm=structure["batch_norm"].one_of(get_args(BatchNormStorage)),
            layers=layers,
            tensor_names=tuple(names),
            aliases=aliases,
            template=dict(template),
        )
        if (scalars := layout.num_tokens * layout.token_dim) > MAX_NUMEL:
            structure.fail(f"at most {MAX_NUMEL} scalars as tokens", got=scalars)
        return layout


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle in the flattened tokens of a network: where one tensor, or the padding of a layer, sits.

    Attributes:
        name: Of the tensor; empty for padding.
        layer: Index of its layer.
        shape: `(rows, columns)`; the tensor holds the same scalars in the same order.
        stride: Scalars from one row to the next.
        start: Scalars before the first row of the layer.
        column: Scalars of a row before the rectangle.
    """

    name: str
    layer: int
    shape: tuple[int, int]
    stride: int
    start: int
    column: int


@dataclass(frozen=True)
class _Geometry:
    """What follows from the layers alone; computed once for all networks of a structure."""

    weight_mask: Tensor
    positions: Tensor
    places: tuple[Place, ...]
    paddings: tuple[Place, ...]


def _token_slices(token_layout: TokenLayout, token_dim: int, layers: tuple[LayerSpec, ...]) -> tuple[slice, ...]:
    counts = [layer.num_tokens(token_layout, token_dim) for layer in layers]
    return tuple(slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True))


@lru_cache(maxsize=32)
def _geometry(token_layout: TokenLayout, token_dim: int, layers: tuple[LayerSpec, ...]) -> _Geometry:
    slices = _token_slices(token_layout, token_dim, layers)
    counts, length = [tokens.stop - tokens.start for tokens in slices], slices[-1].stop
    mask = torch.zeros(length, token_dim, dtype=torch.bool)
    channels = torch.empty(length, dtype=torch.int64)
    for layer, tokens, count in zip(layers, slices, counts, strict=True):
        if token_layout == "rowwise":
            mask[tokens].view(layer.channels, -1)[:, : layer.row_length] = True
            channels[tokens] = torch.arange(count) // (count // layer.channels)
        else:
            mask[tokens].view(-1)[: layer.num_weights] = True
            channels[tokens] = torch.arange(count)
    layer_index = torch.repeat_interleave(torch.arange(len(layers)), torch.tensor(counts))
    positions = torch.stack([torch.arange(length), layer_index, channels], dim=1)
    places: list[Place] = []
    for index, (layer, tokens, count) in enumerate(zip(layers, slices, counts, strict=True)):
        rows = layer.channels if token_layout == "rowwise" else 1
        stride, column = count * token_dim // rows, 0  # rows hold [weight | bias | padding]
        for name, numel in [*((spec.name, spec.numel) for spec in layer.tensors), ("", -1)]:
            width = numel // rows if name else stride - column
            places.append(Place(name, index, (rows, width), stride, tokens.start * token_dim, column))
            column += width
    return _Geometry(
        mask,
        positions,
        tuple(place for place in places if place.name),
        tuple(place for place in places if not place.name and place.shape[1]),
    )


def _read_spec(entry: Entry) -> TensorSpec:
    shape = tuple(length.whole() for length in entry["shape"].entries())
    spec = TensorSpec(entry["name"].text(), shape, entry["dtype"].text())
    if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
        entry["dtype"].fail("a dtype of torch")
    if (
        math.prod(max(1, length) for length in shape) > MAX_NUMEL
    ):  # torch keeps strides, also where there are no elements
        entry["shape"].fail(f"at most {MAX_NUMEL} elements")
    return spec


def _read_layer(entry: Entry) -> LayerSpec:
    weight, bias = _read_spec(entry["weight"]), entry.get("bias")
    if not weight.numel or not getattr(torch, weight.dtype).is_floating_point:
        entry["weight"].fail("a floating-point tensor with elements", got=weight)
    name, kind = entry["name"].text(), entry["kind"].one_of(LAYER_KINDS)
    if bias is None:
        return LayerSpec(name, kind, weight)
    layer = LayerSpec(name, kind, weight, column := _read_spec(bias))
    if (column.shape, column.dtype) != (weight.shape[:1], weight.dtype) or not weight.shape:
        bias.fail(f"one {weight.dtype} for each of {layer.channels} channels", got=column)
    return layer


def _describe(value: object) -> str:
    return f"{value.dtype} ({value.layout})" if isinstance(value, Tensor) else type(value).__name__


def _unfit(tensor: Tensor) -> bool:
    return tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided


def _shared(state_dict: Mapping[str, Tensor], ties: Mapping[str, str]) -> dict[str, str]:
    """Names of the same memory, viewed alike, to the one that it goes by."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state_dict.items():
        if tensor.numel():
            groups.setdefault(
                (*_memory(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device), []
            ).append(name)
    roots = {tuple(names): min(names, key=lambda name: root_key(name, ties)) for names in groups.values()}
    return {name: root for names, root in roots.items() for name in names if name != root}


def _memory(tensor: Tensor) -> tuple[int, int]:
    """What tells memory from other memory: its address; of tensors without values, which object holds it."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
    return tensor.data_ptr(), 0


def _group(specs: Mapping[str, TensorSpec]) -> tuple[LayerSpec, ...]:
    """Join each bias with its weight; everything else stands alone."""
    biases = {}
    for name, spec in specs.items():
        if name.endswith("weight"):
            bias = specs.get(name.removesuffix("weight") + "bias")
            if bias is not None and spec.shape and bias.shape == spec.shape[:1] and bias.dtype == spec.dtype:
                biases[name] = bias
    taken = {bias.name for bias in biases.values()}
    shapes = {name: spec.shape for name, spec in specs.items()}
    layers = []
    for name, spec in specs.items():
        if name in taken:
            continue
        title = name.removesuffix("weight").rstrip("._") if name.endswith("weight") else name
        layers.append(LayerSpec(title or name, possible_kinds(name, shapes)[0], spec, biases.get(name)))
    return tuple(layers)
