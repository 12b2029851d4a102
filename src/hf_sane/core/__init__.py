"""Pure functions on tensors: layouts, tokens, normalisation, permutations and densities."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.core._adapters import adapter_size, load_adapter, save_adapter
    from hf_sane.core._layout import Layout
    from hf_sane.core._metrics import RegressionMetrics
    from hf_sane.core._token_layouts import LayerSpec, register_token_layout
    from hf_sane.core._types import TokenSequence

__all__ = [
    "LayerSpec",
    "Layout",
    "RegressionMetrics",
    "TokenSequence",
    "adapter_size",
    "load_adapter",
    "register_token_layout",
    "save_adapter",
]
_HOMES = {
    "adapter_size": "_adapters",
    "load_adapter": "_adapters",
    "save_adapter": "_adapters",
    "Layout": "_layout",
    "RegressionMetrics": "_metrics",
    "LayerSpec": "_token_layouts",
    "register_token_layout": "_token_layouts",
    "TokenSequence": "_types",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
