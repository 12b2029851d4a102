"""The layout of a network: the position of every scalar of every tensor in the token sequence, without the weights."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hf_sane.core._chunking import Affine, tensors_from_tokens, tokens_from_tensors
from hf_sane.core._layer_kinds import LAYER_KINDS, LayerKind, is_batch_norm, possible_kinds, statistics_kind
from hf_sane.core._names import canonical_key, root_key
from hf_sane.core._token_layouts import (
    TOKEN_LAYOUTS,
    Geometry,
    LayerSpec,
    Place,
    TensorSpec,
    find_token_layout,
    geometry_of,
    token_slices,
)
from hf_sane.records._documents import Entry

BatchNormStorage = Literal["tokens", "template"]
LayerOrder = Literal["names", "given"]
MAX_NUMEL = 2**63 - 1  # limit of torch


@dataclass(frozen=True)
class Layout:
    """The position of each scalar of a network in its token sequence.

    In `rowwise`, the paper's layout (arXiv:2406.09997, section 3), every output channel is a row `[fan_in | bias]`,
    padded with zeros to a multiple of `token_dim` and cut. `dense` first flattens `[weight | bias]` of a layer and
    pads once (GeoSANE, arXiv:2603.23408). While the released code uses only names that contain "weight", every
    floating-point tensor is covered here; tensors that cannot be weights (integer and bool buffers, tensors without
    elements) and, on request, BatchNorm tensors are stored in `template`.

    Attributes:
        token_layout: Name of a [`TokenLayout`]: `"rowwise"`, `"dense"`, or another registered one.
        token_dim: Number of scalars per token, `D`.
        batch_norm: Whether BatchNorm tensors become tokens or remain in the template.
        layers: Layers in the order of their tokens.
        tensor_names: All names, in the order of the state dict.
        aliases: Main name (`root_key`) of a shared tensor by its other names.
        template: Tensors that are kept unchanged. Their values do not affect comparison or `signature`.
        module_names: Names in the module of tensors that its files call otherwise; these are not saved.
    """

    token_layout: str
    token_dim: int
    batch_norm: BatchNormStorage
    layers: tuple[LayerSpec, ...]
    tensor_names: tuple[str, ...]
    aliases: Mapping[str, str]
    template: Mapping[str, Tensor] = field(compare=False, default_factory=dict)
    module_names: Mapping[str, str] = field(compare=False, default_factory=dict)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        token_dim: int,
        token_layout: str = "rowwise",
        batch_norm: BatchNormStorage = "tokens",
        order: LayerOrder = "names",
        ties: Mapping[str, str] | None = None,
        kinds: Mapping[str, LayerKind] | None = None,
    ) -> "Layout":
        """Create the layout of a network.

        Args:
            state_dict: Tensors by name, possibly on the meta device, since only names, shapes, dtypes and sharing of
                memory matter.
            token_dim: Number of scalars per token, >= 1.
            token_layout: Name of a [`TokenLayout`].
            batch_norm: `"tokens"`, or `"template"` to leave BatchNorm (affine and running statistics) out of the
                tokens.
            order: `"names"`, the canonical order (`canonical_key`), which is the same for a file, a state dict in any
                order and a module; or `"given"`, that of the state dict, if it is known to be that of the network.
            ties: Names of shared tensors that files omit according to their module.
            kinds: Kinds of layers by the name of their weight, or of their only tensor; the kinds of others are
                guessed from names and shapes.

        Raises:
            ValueError: If a choice is unknown, `token_dim < 1`, or there are no floating-point weights.
            TypeError: If there are complex tensors, or values that are not tensors.
        """
        find_token_layout(token_layout)
        if token_dim < 1 or batch_norm not in ("tokens", "template"):
            raise ValueError(
                f"expected token_dim >= 1 and batch_norm 'tokens' or 'template', got {token_dim} and {batch_norm!r}"
            )
        if order not in ("names", "given"):
            raise ValueError(f"expected order 'names' or 'given', got {order!r}")
        for name, tensor in state_dict.items():
            if not isinstance(tensor, Tensor) or _unfit(tensor):
                raise TypeError(
                    f"expected a dense real tensor for {name!r}, got {_describe(tensor)}; convert it (dequantize, "
                    "to_dense) or leave it out"
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
            layers=_group(specs, kinds or {}),
            tensor_names=tuple(state_dict),
            aliases=aliases,
            template={n: state_dict[n].detach().clone() for n in state_dict if n in in_template and n not in aliases},
        )

    @cached_property
    def _geometry(self) -> Geometry:
        with torch.device("cpu"):  # since a network may be built on the meta device, for its structure only
            return geometry_of(self.token_layout, self.token_dim, self.layers)

    @cached_property
    def token_slices(self) -> tuple[slice, ...]:
        """Slices of the tokens of each layer."""
        return token_slices(self.token_layout, self.token_dim, self.layers)

    @property
    def layer_rows(self) -> tuple[int, ...]:
        """Number of rows of each layer, see [`TokenLayout`]."""
        rule = find_token_layout(self.token_layout)
        return tuple(rule.rows(layer) for layer in self.layers)

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens of the whole network, `N`."""
        return self.token_slices[-1].stop

    @property
    def max_positions(self) -> list[int]:
        """Sizes of learned tables for the whole network: tokens, layers, maximum number of channels in a layer."""
        return [largest + 1 for largest in self.positions.amax(dim=0).tolist()]

    @cached_property
    def num_weights(self) -> int:
        """Number of real scalars in the tokens."""
        return sum(layer.num_weights for layer in self.layers)

    @property
    def padding_share(self) -> float:
        """Share of token entries that hold no weight."""
        return 1 - self.num_weights / (self.num_tokens * self.token_dim)

    @property
    def weight_mask(self) -> Tensor:
        """`[N, D]` bool, `True` at real weights. Read-only, since networks of one structure share it."""
        return self._geometry.weight_mask

    @property
    def places(self) -> tuple[Place, ...]:
        """Places of all tensors in the tokens, in the order of the layers."""
        return self._geometry.places

    @property
    def paddings(self) -> tuple[Place, ...]:
        """The parts of the tokens that hold no weight."""
        return self._geometry.paddings

    @property
    def layer_index(self) -> Tensor:
        """`[N]` int64, the layer of each token. Read-only, since it is shared."""
        return self._geometry.positions[:, 1]

    @property
    def positions(self) -> Tensor:
        """`[N, 3]` int64: token index, layer index, channel index (in `dense`: index of the token within its layer).

        Read-only, since it is shared.
        """
        return self._geometry.positions

    def tokens(self, tensors: Mapping[str, Tensor], *, batch_dims: int = 0, affine: Affine | None = None) -> Tensor:
        """Write tensors into tokens, one strided pass per layer; differentiable.

        Args:
            tensors: Tensors `[*batch, *shape]` by name, including every tensor of the layers; also by the names in the
                module.
            batch_dims: Number of leading axes of every tensor that index models.
            affine: Scale and shift to apply to each layer's weights; none if `None`.

        Returns:
            `[*batch, N, D]`, zero at padding; float64 if any tensor is, otherwise float32, which can represent every
            dtype exactly.

        Raises:
            KeyError: If a tensor is missing.
            ValueError: If a shape differs from the layout's.
        """
        if self.module_names:
            known = {name: tensors[other] for name, other in self.module_names.items() if other in tensors}
            tensors = {**tensors, **known}
        return tokens_from_tensors(tensors, self._geometry, batch_dims=batch_dims, affine=affine)

    def tensors(self, tokens: Tensor, *, cast: bool = True, affine: Affine | None = None) -> dict[str, Tensor]:
        """Read the tensors of the layers from tokens; differentiable. For a whole network, see [`state_dict`].

        Args:
            tokens: `[*batch, N, D]`.
            cast: Whether to return each tensor in the dtype of the layout rather than that of `tokens`.
            affine: Scale and shift to apply to each layer's weights; none if `None`.

        Returns:
            Tensors `[*batch, *shape]` by name, for all layers, in new memory (or recorded by autograd).

        Raises:
            ValueError: If the shape of `tokens` differs from the layout's.
        """
        return tensors_from_tokens(tokens, self._geometry, cast=cast, affine=affine)

    def state_dict(self, tokens: Tensor, *, affine: Affine | None = None) -> dict[str, Tensor]:
        """Read whole networks from tokens, including the template, in the order of the state dict.

        Args:
            tokens: `[*batch, N, D]`.
            affine: Scale and shift to apply to each layer's weights; none if `None`.

        Returns:
            Tensors `[*batch, *shape]` by name, in the dtypes of the layout and new memory (or recorded by autograd),
            which shared tensors share.

        Raises:
            ValueError: If the shape of `tokens` differs from the layout's.
        """
        return self.complete(self.tensors(tokens, affine=affine), tokens.shape[:-2], device=tokens.device)

    def complete(
        self, tensors: Mapping[str, Tensor], batch: Sequence[int] = (), *, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """Add tensors that tokens do not hold: the template (unless present) and other names of shared tensors.

        Args:
            tensors: Tensors `[*batch, *shape]` by name.
            batch: Leading axes that index models.
            device: Device of the template.
        """
        template = {
            name: value.to(device).expand([*batch, *value.shape]).clone()
            for name, value in self.template.items()
            if name not in tensors
        }
        known = {**tensors, **template}
        return {name: known[self.aliases.get(name, name)] for name in self.tensor_names}

    def for_module(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors of a whole network to the names in its module, for `load_state_dict`."""
        return {self.module_names.get(name, name): tensor for name, tensor in tensors.items()}

    @cached_property
    def signature(self) -> str:
        """SHA-256 (hex) of the structure, which is equal for networks whose tokens have the same meaning.

        It does not depend on values of the template, nor on the order of its tensors among the others, since files may
        sort names.
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
        """The structure in a form that JSON supports; with only name, shape and dtype of the template."""
        return json.loads(json.dumps(self._structure()))

    @classmethod
    def from_dict(cls, structure: Mapping[str, Any], template: Mapping[str, Tensor] | None = None) -> "Layout":
        """Rebuild a layout.

        Args:
            structure: Structure from `to_dict`.
            template: Template tensors; zeros of their shapes if `None`.

        Raises:
            InvalidFileError: If the structure is not that of a layout.
            ValueError: If `template` does not fit the structure.
        """
        return cls.from_entry(Entry(structure, "layout", remedy="pass the result of to_dict()"), template)

    @classmethod
    def from_entry(cls, structure: Entry, template: Mapping[str, Tensor] | None = None) -> "Layout":
        """Like [`from_dict`], for the content of a file; errors include file and field.

        Raises:
            InvalidFileError, ValueError: As in [`from_dict`].
        """
        specs = [_read_spec(entry) for entry in structure["template"].entries()]
        if template is None:  # a single expanded zero, since a file may claim any size
            template = {s.name: torch.zeros((), dtype=getattr(torch, s.dtype)).expand(s.shape) for s in specs}
        if [TensorSpec.of(n, t) for n, t in template.items()] != specs:
            raise ValueError(
                f"template does not fit: expected {[(s.name, s.shape, s.dtype) for s in specs]}, got "
                f"{[(n, tuple(t.shape), str(t.dtype)) for n, t in template.items()]}"
            )
        layers = tuple(_read_layer(entry) for entry in structure["layers"].entries())
        if not layers:
            structure["layers"].fail("at least one layer")
        aliases = {name: entry.text() for name, entry in structure["aliases"].items()}
        stored = [spec.name for layer in layers for spec in layer.tensors] + [spec.name for spec in specs]
        for alias, target in structure["aliases"].items():
            if target.value not in stored or alias in stored:
                target.fail("another name of a tensor of this layout")
        names = [entry.text() for entry in structure["tensor_names"].entries()]
        if sorted(names) != sorted([*stored, *aliases]) or len(set(names)) != len(names):
            structure["tensor_names"].fail("all tensors of layers, template and aliases once", got=sorted(names)[:5])
        layout = cls(
            token_layout=structure["token_layout"].one_of(list(TOKEN_LAYOUTS)),
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


def _read_spec(entry: Entry) -> TensorSpec:
    shape = tuple(length.whole() for length in entry["shape"].entries())
    spec = TensorSpec(entry["name"].text(), shape, entry["dtype"].text())
    if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
        entry["dtype"].fail("a dtype of torch")
    if (
        math.prod(max(1, length) for length in shape) > MAX_NUMEL
    ):  # torch computes strides even if there are no elements
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
    """Main names of tensors that share memory and view, by their other names."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state_dict.items():
        if tensor.numel():
            groups.setdefault(
                (*_memory(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device), []
            ).append(name)
    several = [names for names in groups.values() if len(names) > 1]
    roots = {tuple(names): min(names, key=lambda name: root_key(name, ties)) for names in several}
    return {name: root for names, root in roots.items() for name in names if name != root}


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Identity of memory: its address, or, for tensors without values, the object that holds it."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
    return tensor.data_ptr(), 0


def _group(specs: Mapping[str, TensorSpec], kinds: Mapping[str, LayerKind]) -> tuple[LayerSpec, ...]:
    """Join each bias with its weight; all other tensors form their own layers."""
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
        kind = kinds.get(name) or possible_kinds(name, shapes)[0]
        layers.append(LayerSpec(title or name, kind, spec, biases.get(name)))
    return tuple(layers)
