"""The weight tokenizer: converts networks to sequences of normalised weight tokens, and tokens to networks."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import BatchFeature, FeatureExtractionMixin
from transformers.utils import FEATURE_EXTRACTOR_NAME

from hf_sane.core._layout import BatchNormStorage, Layout
from hf_sane.core._names import canonical_key
from hf_sane.core._normalization import LayerStatistics, layer_key
from hf_sane.core._token_layouts import LayerSpec, find_token_layout
from hf_sane.core._types import StateDict, TokenSequence
from hf_sane.records._outputs import check_finished
from hf_sane.records._patience import patiently
from hf_sane.records._sources import pretrained_arguments
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._pretrained import reading_pretrained
from hf_sane.tokenization._reading import Checkpoint, read_network

Normalization = Literal["standardize", "robust", "none"]
DIGEST_DIGITS = 16
# 1: layers of architectures that were not fitted are in the order of the source, which may differ between a file and a
# module. 2: they are in the canonical order of their names. A configuration without a version has format 1.
FORMAT_VERSION = 2
# Keys that transformers itself writes to preprocessor_config.json, or adds when it reads one.
FOREIGN_KEYS = {
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
}


class SANEFeatureExtractor(FeatureExtractionMixin):
    """Weight tokenizer: converts networks to token sequences, and token sequences to networks.

    Every floating-point tensor becomes tokens (see `Layout`), so that `decode(encode(network))` restores every
    tensor: bit by bit with `normalization="none"`, up to rounding otherwise. With `"standardize"` (used in the paper)
    or `"robust"`, the extractor must first be fitted on training networks; the statistics are saved with it.

    Args:
        token_dim: Scalars per token, `D`. The paper uses 289 for CNNs and 288 for ResNets.
        token_layout: `"rowwise"` (used in the paper) or `"dense"`.
        batch_norm: `"tokens"`, or `"template"` to store BatchNorm tensors unchanged.
        normalization: `"standardize"`, `"robust"` or `"none"`.
        statistics: Fitted statistics, `{"means": {...}, "stds": {...}}`; set by `fit`.
        layer_orders: Layers of each fitted architecture in order; set by `fit`. Files do not preserve the order of
            layers. Networks of a fitted architecture therefore use the order in which it was fitted, and all others
            the canonical order of their names, so that file, state dict and module give the same tokens.
        format_version: Version of the format, which determines the order of architectures that are not in
            `layer_orders`; 1 for configurations without a version.
        fitted_digest: Digest of statistics and layer orders in a saved extractor, verified when it is loaded.

    Raises:
        TypeError: If a setting is unknown.
        ValueError: If a setting is out of range.
    """

    model_input_names = ["tokens", "positions", "weight_mask", "attention_mask"]  # noqa: RUF012 (set by transformers)

    def __init__(
        self,
        token_dim: int = 289,
        token_layout: str = "rowwise",
        batch_norm: BatchNormStorage = "tokens",
        normalization: Normalization = "standardize",
        statistics: Mapping[str, Mapping[str, float]] | None = None,
        layer_orders: Sequence[Sequence[str]] | None = None,
        fitted_digest: str | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(kwargs.keys() - FOREIGN_KEYS):
            raise TypeError(
                f"unknown settings {unknown}; expected token_dim, token_layout, batch_norm, normalization, "
                "statistics, layer_orders, fitted_digest, format_version"
            )
        if type(format_version) is not int or not 1 <= format_version <= FORMAT_VERSION:
            raise ValueError(
                f"expected a format_version from 1 to {FORMAT_VERSION}, got {format_version!r}, written by a newer "
                "hf_sane; update hf_sane"
            )
        if normalization not in ("standardize", "robust", "none"):
            raise ValueError(f"expected normalization 'standardize', 'robust' or 'none', got {normalization!r}")
        if type(token_dim) is not int or token_dim < 1:
            raise ValueError(f"expected token_dim to be a whole number >= 1, got {token_dim!r}")
        find_token_layout(token_layout)
        if batch_norm not in get_args(BatchNormStorage):
            raise ValueError(f"expected batch_norm among {get_args(BatchNormStorage)}, got {batch_norm!r}")
        if statistics is not None:
            LayerStatistics(**statistics)  # rejects values that are not finite
        if fitted_digest not in (None, found := _digest(statistics, layer_orders)):
            raise ValueError(
                f"expected the statistics and layer orders with digest {fitted_digest}, got {found}: they were "
                "changed after they were saved; fit again, or remove fitted_digest if you changed them yourself"
            )
        super().__init__(**kwargs)
        self.token_dim = token_dim
        self.token_layout = token_layout
        self.batch_norm = batch_norm
        self.normalization = normalization
        self.statistics = statistics and {name: dict(values) for name, values in statistics.items()}
        self.layer_orders = [list(order) for order in layer_orders or []]
        self.format_version = format_version

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create an extractor from the content of preprocessor_config.json, as `from_pretrained` does.

        Raises:
            ValueError: If the content belongs to another feature extractor.
        """
        if "token_dim" not in feature_extractor_dict:
            raise ValueError(f"expected settings such as token_dim, got {sorted(feature_extractor_dict) or 'none'}")
        return super().from_dict({"format_version": 1, **feature_extractor_dict}, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "SANEFeatureExtractor":
        """Load an extractor from a folder or a Hub repo; the arguments are those of Transformers.

        Raises:
            OSError: If there is no extractor.
            InvalidFileError: If it is damaged or has invalid settings.
        """
        with reading_pretrained(f"{pretrained_model_name_or_path}/{FEATURE_EXTRACTOR_NAME}", "a weight tokenizer"):
            return patiently(super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    @staticmethod
    def load(
        source: str | Path, *, revision: str | None = None, subfolder: str | None = None
    ) -> "SANEFeatureExtractor":
        """Like `from_pretrained`, but also accept `owner/name@revision`.

        Raises:
            FileNotFoundError: If there is no such folder or repository.
            InvalidFileError: As in `from_pretrained`; also if the folder is incomplete, or files were removed or
                changed.
        """
        name, where = pretrained_arguments(source, revision=revision, subfolder=subfolder)
        check_finished(name)
        return SANEFeatureExtractor.from_pretrained(name, **where)

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved, with a digest of the fitted statistics and orders."""
        return {**super().to_dict(), "fitted_digest": _digest(self.statistics, self.layer_orders)}

    def layout(self, source: Source, *, revision: str | None = None) -> Layout:
        """Compute a network's layout without reading its values, which may be meta tensors."""
        return self.lay_out(read_network(source, revision=revision))

    def encode(self, source: Source, *, revision: str | None = None) -> TokenSequence:
        """Convert a network to tokens.

        Args:
            source: State dict, module, path (safetensors, folder, weights-only pickle) or Hub repo id. A module of
                Transformers is encoded as `save_pretrained` would write it.
            revision: Branch, tag or commit of a Hub repo.

        Returns:
            Normalised tokens with mask, positions and the layout that `decode` needs.

        Raises:
            ValueError: If weights are NaN or infinite (also in the template), overflow when normalised, or are meta
                tensors; or if the extractor is not fitted.
            KeyError: If the extractor was fitted only on other architectures.
        """
        weights = read_network(source, revision=revision)
        state_dict = weights.tensors
        if meta := [name for name, tensor in state_dict.items() if tensor.is_meta]:
            raise ValueError(f"tensors without values (meta device): {meta[:5]}; load the weights, or use layout()")
        layout = self.lay_out(weights)
        affine = None if self.normalization == "none" else self.scales(layout)
        tokens = layout.tokens(state_dict, affine=affine)
        _check_finite(tokens, layout, state_dict)
        return TokenSequence(tokens, layout.weight_mask, layout.positions, layout)

    def lay_out(self, weights: Checkpoint | Mapping[str, Tensor]) -> Layout:
        """Layout of a network from [`read_network`], or of (meta) tensors, in the order of [`arranged`]."""
        known = weights if isinstance(weights, Checkpoint) else Checkpoint.of(weights)
        layout = Layout.from_state_dict(
            known.outlines,
            kinds=known.kinds,
            token_dim=self.token_dim,
            token_layout=self.token_layout,
            batch_norm=self.batch_norm,
            order="given" if self.format_version == 1 else "names",
            ties=known.aliases,
        )
        return self.arranged(layout)

    def arranged(self, layout: Layout) -> Layout:
        """Reorder the layers of a network into the order that this extractor uses.

        This is the order in which the architecture was fitted, or the canonical order of names if it was not.
        """
        ordered = layout.layers if self.format_version == 1 else sorted(layout.layers, key=_by_name)
        by_key: dict[str, list[LayerSpec]] = {}
        for layer in ordered:
            by_key.setdefault(layer_key(layer), []).append(layer)
        keys = sorted(map(layer_key, ordered))
        for order in self.layer_orders:
            if len(order) == len(keys) and sorted(order) == keys:
                ordered = [by_key[key].pop(0) for key in order]
                break
        return layout if tuple(ordered) == layout.layers else replace(layout, layers=tuple(ordered))

    def arrange(self, layout: Layout, tokens: Tensor) -> tuple[Layout, Tensor]:
        """Reorder raw or normalised tokens `[*batch, N, D]` of any layout into the order of [`arranged`]."""
        target = self.arranged(layout)
        if target is layout:
            return layout, tokens
        places = {layer.weight.name: part for layer, part in zip(layout.layers, layout.token_slices, strict=True)}
        index = [torch.arange(place.start, place.stop) for place in (places[x.weight.name] for x in target.layers)]
        return target, tokens.index_select(-2, torch.cat(index).to(tokens.device))

    def learn_orders(self, layouts: Iterable[Layout]) -> "SANEFeatureExtractor":
        """Store the order of architectures whose order is not yet known; return `self`."""
        orders = {tuple(order): None for order in self.layer_orders}
        known = {tuple(sorted(order)) for order in orders}
        for layout in layouts:
            order = tuple(map(layer_key, layout.layers))
            if tuple(sorted(order)) not in known:
                known.add(tuple(sorted(order)))
                orders[order] = None
        self.layer_orders = [list(order) for order in orders]
        return self

    def decode(self, tokens: Tensor, layout: Layout) -> StateDict:
        """Convert tokens to a state dict.

        Args:
            tokens: `[N, D]`, normalised as in `encode`.
            layout: The layout of the network, from `encode`.

        Returns:
            All tensors in their original order and dtype; tensors that shared memory share it again.

        Raises:
            ValueError: If `tokens` does not have the layout's shape.
        """
        affine = None if self.normalization == "none" else self._statistics().inverse_scales(layout)
        return layout.state_dict(tokens, affine=affine)

    def fit(
        self,
        sources: Iterable[Source | tuple[Layout, Tensor]],
        *,
        max_abs_weight: float | None = None,
        by_kind: bool = False,
    ) -> "SANEFeatureExtractor":
        """Fit the per-layer statistics. Pass training networks only.

        Args:
            sources: Networks, or pairs of a layout and *raw* tokens `[M, N, D]`.
            max_abs_weight: Leave out networks with a larger weight, since one diverged network would dominate every
                scale.
            by_kind: Also fit each kind of layer (conv, linear, ...), for networks with layers that no training network
                has. Zoos of mixed architectures need this.

        Returns:
            `self`.
        """
        layouts: dict[tuple[LayerSpec, ...], Layout] = {}

        def batches() -> Iterator[tuple[Layout, Tensor]]:
            for source in sources:
                layout, tokens = self._batch(source, max_abs_weight)
                if len(tokens):
                    layouts.setdefault(layout.layers, layout)
                    yield layout, tokens

        if self.normalization == "none":
            for _ in batches():
                pass  # only the orders are fitted
            return self.learn_orders(layouts.values())
        fitted = LayerStatistics.fit(batches(), self.normalization, by_kind=by_kind)
        self.layer_orders = []
        self.learn_orders(layouts.values())
        self.statistics = {"means": dict(fitted.means), "stds": dict(fitted.stds)}
        return self

    def extended(
        self, sources: Iterable[Source | tuple[Layout, Tensor]], *, max_abs_weight: float | None = None
    ) -> "SANEFeatureExtractor":
        """Return a copy with statistics of additional layers, fitted on a few networks that have these layers.

        With anchors of a new architecture as `sources` (the *prompt examples* of arXiv:2406.09997, section 4.4),
        networks of that architecture can be encoded and sampled. Layers with a known name and row length keep their
        statistics, so that networks of the training zoo are encoded as before.

        Args:
            sources: Networks, or pairs of a layout and *raw* tokens `[M, N, D]`.
            max_abs_weight: Leave out networks with a larger weight.

        Raises:
            ValueError: If there is no network, or this extractor is not fitted.
        """
        wider = deepcopy(self)
        if self.normalization == "none":
            return wider
        own = self._statistics()
        found = deepcopy(self).fit(sources, max_abs_weight=max_abs_weight)
        new = found._statistics()
        wider.statistics = {"means": {**new.means, **own.means}, "stds": {**new.stds, **own.stds}}
        wider.layer_orders += [order for order in found.layer_orders if order not in wider.layer_orders]
        return wider

    def _batch(self, source: Source | tuple[Layout, Tensor], max_abs_weight: float | None) -> tuple[Layout, Tensor]:
        if isinstance(source, tuple):
            layout, tokens = source
        else:
            weights = read_network(source)
            layout = self.lay_out(weights)
            tokens = layout.tokens(weights.tensors)[None]
        if max_abs_weight is not None:
            tokens = tokens[tokens.abs().amax(dim=(1, 2)) <= max_abs_weight]
        return layout, tokens

    def _statistics(self) -> LayerStatistics:
        if self.statistics is None:
            raise ValueError(
                f"normalization={self.normalization!r} needs statistics: call fit() with training networks, load a "
                "fitted extractor with from_pretrained(), or use normalization='none'"
            )
        return LayerStatistics(self.statistics["means"], self.statistics["stds"])

    def scales(self, layout: Layout) -> list[tuple[float, float]]:
        """The factor and offset of each layer that normalise its weights: `(1 / sigma, -mu / sigma)`.

        Raises:
            ValueError: If the extractor is not fitted.
            KeyError: If it was fitted on another architecture.
        """
        return [(1.0, 0.0)] * len(layout.layers) if self.normalization == "none" else self._statistics().scales(layout)

    def normalize(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Normalise raw tokens `[*batch, N, D]`; padding remains zero."""
        return tokens if self.normalization == "none" else self._statistics().apply(tokens, layout)

    def denormalize(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Convert normalised tokens `[*batch, N, D]` to raw tokens; differentiable, and padding remains zero."""
        return tokens if self.normalization == "none" else self._statistics().invert(tokens, layout)

    def __call__(self, sources: Source | Sequence[Source], return_tensors: str | None = "pt") -> BatchFeature:
        """Encode one or several networks into a padded batch.

        Args:
            sources: A network, or a list of them.
            return_tensors: Type of the tensors, as in Transformers; only `"pt"` is supported.

        Returns:
            `tokens` `[B, N, D]`, `positions` `[B, N, 3]`, `weight_mask` `[B, N, D]`, `attention_mask` `[B, N]`.
        """
        networks = [sources] if isinstance(sources, str | Path | CheckpointSource | Mapping | nn.Module) else sources
        encoded = [self.encode(network) for network in networks]
        longest = max(map(len, encoded))

        def pad(values: Iterable[Tensor]) -> Tensor:
            return torch.stack([torch.cat([v, v.new_zeros(longest - len(v), *v.shape[1:])]) for v in values])

        data = {
            "tokens": pad(e.tokens for e in encoded),
            "positions": pad(e.positions for e in encoded),
            "weight_mask": pad(e.weight_mask for e in encoded),
            "attention_mask": pad(torch.ones(len(e), dtype=torch.bool) for e in encoded),
        }
        return BatchFeature(data, tensor_type=return_tensors)


def _digest(statistics: Mapping[str, Mapping[str, float]] | None, layer_orders: Sequence[Sequence[str]] | None) -> str:
    content = json.dumps([statistics or None, layer_orders or []], sort_keys=True)
    return sha256(content.encode()).hexdigest()[:DIGEST_DIGITS]


def _by_name(layer: LayerSpec) -> tuple[Any, ...]:
    return canonical_key(layer.weight.name)


def _check_finite(tokens: Tensor, layout: Layout, state_dict: Mapping[str, Tensor]) -> None:
    """Check all weights in one cheap pass, and locate bad ones only if it fails."""
    template = [tensor for tensor in layout.template.values() if tensor.is_floating_point()]
    if torch.isfinite(tokens.sum()) and not any(map(not_finite, template)):
        return
    counts = {name: not_finite(tensor) for name, tensor in state_dict.items() if tensor.is_floating_point()}
    if bad := {name: count for name, count in counts.items() if count}:
        raise ValueError(f"NaN or infinite weights (tensor: count): {bad}; repair or leave out this network")
    for layer, part in zip(layout.layers, layout.token_slices, strict=True):
        if not tokens[part].isfinite().all():
            largest = max(state_dict[spec.name].detach().double().abs().max().item() for spec in layer.tensors)
            raise ValueError(
                f"weights of {layer.name} overflow when normalised: the largest is {largest:.3g}, diverged or on "
                "a different scale than the networks that the extractor was fitted on; leave out this network"
            )


def not_finite(tensor: Tensor) -> int:
    """Number of entries that are NaN or infinite, for all dtypes, since float8 has no `isfinite`."""
    return int((~torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float())).sum())
