"""A new token layout: rows of two channels, where a layer has an even number of them."""

from hf_sane.core import LayerSpec, register_token_layout


def pairs(layer: LayerSpec) -> int:
    """Number of rows into which a layer is cut."""
    return layer.channels // 2 if layer.channels % 2 == 0 else layer.channels


register_token_layout("pairs", pairs, counts_rows=True)
