"""Predict properties from weights, with embeddings, linear probes, the baselines W and s(W), and metrics."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.probing._classification import LeftOutLabels, LeftOutNumbers, classify_left_out, regress_left_out
    from hf_sane.probing._embeddings import embed_networks
    from hf_sane.probing._poolings import POOLINGS, pool_latents, register_pooling
    from hf_sane.probing._probes import RidgeProbe
    from hf_sane.probing._streaming import embed_checkpoint, embed_stream
    from hf_sane.probing._transfer import TransferResult, transfer_table

__all__ = [
    "POOLINGS",
    "LeftOutLabels",
    "LeftOutNumbers",
    "RidgeProbe",
    "TransferResult",
    "classify_left_out",
    "embed_checkpoint",
    "embed_networks",
    "embed_stream",
    "pool_latents",
    "register_pooling",
    "regress_left_out",
    "transfer_table",
]
_HOMES = {
    "LeftOutLabels": "_classification",
    "LeftOutNumbers": "_classification",
    "classify_left_out": "_classification",
    "regress_left_out": "_classification",
    "embed_networks": "_embeddings",
    "POOLINGS": "_poolings",
    "pool_latents": "_poolings",
    "register_pooling": "_poolings",
    "RidgeProbe": "_probes",
    "embed_checkpoint": "_streaming",
    "embed_stream": "_streaming",
    "TransferResult": "_transfer",
    "transfer_table": "_transfer",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
