"""The weight tokenizer: a network in, a sequence of normalised weight tokens out, and back, bit by bit."""

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

from hf_sane.core.chunking import tensors_from_tokens, tokens_from_tensors
from hf_sane.core.layer_kinds import LayerKind, module_kinds
from hf_sane.core.layout import BatchNormStorage, Layout, TokenLayout
from hf_sane.core.normalization import LayerStatistics, layer_key
from hf_sane.core.types import StateDict, TokenSequence
from hf_sane.tokenization.checkpoints import Source, load_state_dict, strip_prefixes
from hf_sane.tokenization.pretrained import reading_pretrained

Normalization = Literal["standardize", "robust", "none"]
DIGEST_DIGITS = 16
# What transformers itself writes into preprocessor_config.json, or passes along when it reads one.
FOREIGN_KEYS = {
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
}


class SANEFeatureExtractor(FeatureExtractionMixin):
    """Weight tokenizer: networks to token sequences and back.

    Every floating-point tensor becomes tokens (see `Layout`), so `decode(encode(network))` gives every tensor back; bit by
    bit with `normalization="none"`, to rounding otherwise. With `"standardize"` (the paper's) or `"robust"` the extractor
    must be fitted on training networks first; the statistics are saved with it.

    Args:
        token_dim: Scalars per token, `D`. The paper: 289 for CNNs, 288 for ResNets.
        token_layout: `"rowwise"` (the paper's) or `"dense"`.
        batch_norm: `"tokens"`, or `"template"` to carry BatchNorm tensors unchanged.
        normalization: `"standardize"`, `"robust"` or `"none"`.
        statistics: Fitted statistics, `{"means": {...}, "stds": {...}}`; filled by `fit`.
        layer_orders: Layers of each fitted architecture in order; filled by `fit`. safetensors files sort their tensors by
            name, so a network read from a file is put back in the order that its family was fitted in.

        fitted_digest: Of statistics and layer orders, as a saved extractor has it; compared when it is read.

    Raises:
        TypeError: For an unknown setting.
        ValueError: For a setting out of range.
    """

    model_input_names = ["tokens", "positions", "weight_mask", "attention_mask"]  # noqa: RUF012 (set by transformers)

    def __init__(
        self,
        token_dim: int = 289,
        token_layout: TokenLayout = "rowwise",
        batch_norm: BatchNormStorage = "tokens",
        normalization: Normalization = "standardize",
        statistics: Mapping[str, Mapping[str, float]] | None = None,
        layer_orders: Sequence[Sequence[str]] | None = None,
        fitted_digest: str | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(kwargs.keys() - FOREIGN_KEYS):
            raise TypeError(
                f"unknown settings {unknown}; expected token_dim, token_layout, batch_norm, normalization, statistics, layer_orders"
            )
        if normalization not in ("standardize", "robust", "none"):
            raise ValueError(f"expected normalization 'standardize', 'robust' or 'none', got {normalization!r}")
        if type(token_dim) is not int or token_dim < 1:
            raise ValueError(f"expected token_dim to be a whole number >= 1, got {token_dim!r}")
        if token_layout not in get_args(TokenLayout) or batch_norm not in get_args(BatchNormStorage):
            raise ValueError(
                f"expected token_layout among {get_args(TokenLayout)} and batch_norm among {get_args(BatchNormStorage)}, "
                f"got {token_layout!r} and {batch_norm!r}"
            )
        if statistics is not None:
            LayerStatistics(**statistics)  # refuses what is not finite
        if fitted_digest not in (None, found := _digest(statistics, layer_orders)):
            raise ValueError(
                f"expected the statistics and layer orders with digest {fitted_digest}, got {found}: they were changed "
                "after they were saved; fit again, or remove fitted_digest if you changed them yourself"
            )
        super().__init__(**kwargs)
        self.token_dim = token_dim
        self.token_layout = token_layout
        self.batch_norm = batch_norm
        self.normalization = normalization
        self.statistics = statistics and {name: dict(values) for name, values in statistics.items()}
        self.layer_orders = [list(order) for order in layer_orders or []]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "SANEFeatureExtractor":
        """Read what `save_pretrained` wrote, from a folder or a Hub repo; arguments as in Transformers.

        Raises:
            OSError: If there is none.
            InvalidFileError: If it is damaged, or holds settings that cannot be right.
        """
        with reading_pretrained(f"{pretrained_model_name_or_path}/{FEATURE_EXTRACTOR_NAME}", "a weight tokenizer"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved, with a digest of what was fitted."""
        return {**super().to_dict(), "fitted_digest": _digest(self.statistics, self.layer_orders)}

    def layout(self, source: Source, *, revision: str | None = None) -> Layout:
        """Lay out a network without reading its values; meta tensors will do."""
        return self.lay_out(load_state_dict(source, revision=revision), kinds=source_kinds(source))

    def encode(self, source: Source, *, revision: str | None = None) -> TokenSequence:
        """Turn a network into tokens.

        Args:
            source: State dict, module, path (safetensors, folder, weights-only pickle) or Hub repo id.
            revision: Branch, tag or commit of a Hub repo.

        Returns:
            Normalised tokens with mask, positions and the layout that `decode` needs.

        Raises:
            ValueError: For NaN or infinite weights, meta tensors, or an extractor that was not fitted.
            KeyError: If the extractor was fitted on another architecture.
        """
        state_dict = load_state_dict(source, revision=revision)
        if meta := [name for name, tensor in state_dict.items() if tensor.is_meta]:
            raise ValueError(f"tensors without values (meta device): {meta[:5]}; load the weights, or use layout()")
        layout = self.lay_out(state_dict, kinds=source_kinds(source))
        affine = None if self.normalization == "none" else self.scales(layout)
        tokens = tokens_from_tensors(state_dict, layout, affine=affine)
        _check_finite(tokens, state_dict)
        return TokenSequence(tokens, layout.weight_mask, layout.positions, layout)

    def lay_out(self, state_dict: Mapping[str, Tensor], *, kinds: Mapping[str, LayerKind] | None = None) -> Layout:
        """The layout of tensors in memory (or on the meta device), layers in the order of their family if that was fitted.

        Args:
            state_dict: Tensors by name.
            kinds: What they are, where that is known; see `Layout.from_state_dict`.
        """
        layout = Layout.from_state_dict(
            state_dict,
            token_dim=self.token_dim,
            token_layout=self.token_layout,
            batch_norm=self.batch_norm,
            kinds=kinds,
        )
        keys = [layer_key(layer) for layer in layout.layers]
        for order in self.layer_orders:
            if order != keys and sorted(order) == sorted(keys):
                by_key = dict(zip(keys, layout.layers, strict=True))
                return replace(layout, layers=tuple(by_key[key] for key in order))
        return layout

    def decode(self, tokens: Tensor, layout: Layout) -> StateDict:
        """Turn tokens back into a state dict.

        Args:
            tokens: `[N, D]`, normalised as `encode` gives them.
            layout: The layout of the network, from `encode`.

        Returns:
            All tensors in their original order and dtype; shared tensors are shared again.

        Raises:
            ValueError: If `tokens` does not have the layout's shape.
        """
        affine = None if self.normalization == "none" else self._statistics().inverse_scales(layout)
        tensors = tensors_from_tokens(tokens, layout, affine=affine)
        tensors |= {name: tensor.clone() for name, tensor in layout.template.items()}
        return {name: tensors[layout.aliases.get(name, name)] for name in layout.tensor_names}

    def fit(
        self,
        sources: Iterable[Source | tuple[Layout, Tensor]],
        *,
        max_abs_weight: float | None = None,
        by_kind: bool = False,
    ) -> "SANEFeatureExtractor":
        """Fit the per-layer statistics; use training networks only.

        Args:
            sources: Networks, or pairs of a layout and *raw* tokens `[M, N, D]`.
            max_abs_weight: Leave out networks with a larger weight: one exploded network would set every scale.
            by_kind: Also fit each kind of layer (conv, linear, ...), for networks whose layers no training network has:
                zoos of mixed architectures need it.

        Returns:
            `self`.
        """
        if self.normalization == "none":
            return self
        orders: dict[str, list[str]] = {}

        def batches() -> Iterator[tuple[Layout, Tensor]]:
            for source in sources:
                layout, tokens = self._batch(source, max_abs_weight)
                if len(tokens):
                    orders.setdefault(layout.signature, [layer_key(layer) for layer in layout.layers])
                    yield layout, tokens

        fitted = LayerStatistics.fit(batches(), self.normalization, by_kind=by_kind)
        self.layer_orders = list(orders.values())
        self.statistics = {"means": dict(fitted.means), "stds": dict(fitted.stds)}
        return self

    def extended(
        self, sources: Iterable[Source | tuple[Layout, Tensor]], *, max_abs_weight: float | None = None
    ) -> "SANEFeatureExtractor":
        """A copy that also knows layers which it was not fitted on, from a few networks that have them.

        So networks of an architecture that no training network had can be encoded and sampled, with anchors of that
        architecture as `sources` (the *prompt examples* of arXiv:2406.09997, section 4.4). Layers that are known already,
        by name and row length, keep their statistics: networks of the training zoo are encoded as before.

        Args:
            sources: Networks, or pairs of a layout and *raw* tokens `[M, N, D]`.
            max_abs_weight: Leave out networks with a larger weight.

        Raises:
            ValueError: Without any network, or if this extractor was not fitted.
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
            state_dict = load_state_dict(source)
            layout = self.layout(state_dict)
            tokens = tokens_from_tensors(state_dict, layout)[None]
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
        """Per layer, the factor and the term that turn a weight into a normalised one: `(1 / sigma, -mu / sigma)`.

        Raises:
            ValueError: If the extractor was not fitted.
            KeyError: If it was fitted on another architecture.
        """
        return [(1.0, 0.0)] * len(layout.layers) if self.normalization == "none" else self._statistics().scales(layout)

    def normalize(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Raw tokens `[*batch, N, D]` to normalised ones; padding stays zero."""
        return tokens if self.normalization == "none" else self._statistics().apply(tokens, layout)

    def denormalize(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Normalised tokens `[*batch, N, D]` to raw ones, differentiable; padding stays zero."""
        return tokens if self.normalization == "none" else self._statistics().invert(tokens, layout)

    def __call__(self, sources: Source | Sequence[Source], return_tensors: str | None = "pt") -> BatchFeature:
        """Encode one or several networks into a padded batch.

        Args:
            sources: A network, or a list of them.
            return_tensors: As in transformers; `"pt"`.

        Returns:
            `tokens` `[B, N, D]`, `positions` `[B, N, 3]`, `weight_mask` `[B, N, D]`, `attention_mask` `[B, N]`.
        """
        networks = [sources] if isinstance(sources, str | Path | Mapping | nn.Module) else sources
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


def source_kinds(source: Source) -> dict[str, LayerKind]:
    """What the tensors of a module are, under the names that `load_state_dict` gives them; nothing for other sources."""
    return strip_prefixes(module_kinds(source)) if isinstance(source, nn.Module) else {}


def _check_finite(tokens: Tensor, state_dict: Mapping[str, Tensor]) -> None:
    """One cheap pass; only when it fails, find out where."""
    if torch.isfinite(tokens.sum()):
        return
    counts = {  # float8 has no isfinite
        name: int((~torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float())).sum())
        for name, tensor in state_dict.items()
        if tensor.is_floating_point()
    }
    bad = {name: count for name, count in counts.items() if count}
    if bad:
        raise ValueError(f"NaN or infinite weights (tensor: count): {bad}; repair or leave out this network")
