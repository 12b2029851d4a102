"""What `embed` and `probe` share: tokens and embeddings of the networks of a zoo."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from hf_sane.core.layout import Layout
    from hf_sane.zoo.dataset import ZooSplit

NETWORKS_PER_BLOCK = 512
POOLINGS_HELP = "Poolings of the latents, separated by commas; 'all' for every one."


def loaded_commit(source: str, revision: str | None) -> str | None:
    """The commit that a repository was just loaded from (the cache keeps each in a folder of its name); none of a folder."""
    from huggingface_hub import try_to_load_from_cache

    from hf_sane.records.sources import parse_source

    place = parse_source(source, revision=revision)
    if isinstance(place, Path):
        return None
    found = try_to_load_from_cache(place.repo_id, "config.json", revision=place.revision)
    return Path(found).parent.name if isinstance(found, str) else None


def parse_poolings(text: str) -> list[Any]:
    """Names of poolings from the command line; `embed_networks` checks them."""
    from hf_sane.probing.embeddings import POOLINGS

    return list(POOLINGS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]


def token_blocks(split: "ZooSplit", *, aligned: bool) -> "Iterator[tuple[np.ndarray, Layout, Tensor]]":
    """Raw tokens of a split in blocks of one layout: positions in the split `[m]`, layout, tokens `[m, N, D]`."""
    import numpy as np

    from hf_sane.zoo.alignment import aligned_tokens

    keys = np.char.add(split.column("architecture").astype(str), split.column("layout").astype(str))
    for key in dict.fromkeys(keys.tolist()):
        members = np.flatnonzero(keys == key)
        for start in range(0, len(members), NETWORKS_PER_BLOCK):
            block = members[start : start + NETWORKS_PER_BLOCK]
            part = split.select(block)
            yield block, part.layout(0), aligned_tokens(part) if aligned else part.stacked_tokens()


def stacked_features(parts: "Sequence[Tensor]") -> "Tensor":
    """Join the features of blocks `[m, F]`.

    Raises:
        ValueError: If networks of several layouts gave features of several lengths.
    """
    import torch

    if len(lengths := sorted({part.shape[1] for part in parts})) > 1:
        raise ValueError(
            f"networks of several architectures gave features of lengths {lengths}; use the pooling 'mean', or a zoo of "
            "one architecture"
        )
    return torch.cat(list(parts))
