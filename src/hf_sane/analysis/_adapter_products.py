"""Read LoRA adapters for the analysis of spectra: the weight changes `s B A` instead of the factors."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_sane.analysis._matrices import LOW_RANK_FACTOR, LayerMatrices, reason_to_skip
from hf_sane.core._adapters import ADAPTER_CONFIG
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._adapters import adapter_folder
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint

UNKNOWN_SCALE = "the file does not give alpha / r: norms are those of B A alone"


def read_products(path: Path, factors: Sequence[str], skipped: dict[str, str]) -> Iterator[LayerMatrices]:
    """Yield the weight changes of an adapter, one at a time.

    Args:
        path: Folder or file.
        factors: Names of its factors.
        skipped: Skipped tensors; if no products can be formed, the factors are added with the reason.
    """
    try:
        pairs = open_factors(path)
    except ValueError as error:
        for name in factors:
            if skipped[name] == LOW_RANK_FACTOR:
                skipped[name] = f"{LOW_RANK_FACTOR}; no product could be formed: {error}"
        return
    for name in factors:
        del skipped[name]  # since they are analysed as products
    has_config = (adapter_folder(path) / ADAPTER_CONFIG).is_file()
    names = open_checkpoint(path)
    for module, (first, second) in pairs.items():
        product = second.flatten(1) @ first.flatten(1).to(second.dtype)
        if (reason := reason_to_skip(product)) is not None:
            skipped[module] = reason
            continue
        is_scaled = has_config or f"{module}.alpha" in names
        yield LayerMatrices(module, product, product[None], "product", "" if is_scaled else UNKNOWN_SCALE)
