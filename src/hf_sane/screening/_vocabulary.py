"""Recognise the tensors of a vocabulary and of positions by their names."""

import re
from collections.abc import Iterable

# The last parts of names, without `weight`. Those in the second sets are also names of other layers, so that they
# count only outside of numbered layers.
INPUTS = {"embed_tokens", "wte", "word_embeddings", "word_embedding", "token_embedding", "token_embeddings"}
INPUTS |= {"tok_embeddings", "tokens_embed", "token_embd", "token_emb", "embed_in"}
INPUTS_OUTSIDE = {"shared", "embed", "embeddings", "embedding", "embedder", "emb", "encoder", "w"}
HEADS = {"lm_head", "generator_lm_head", "output_projection", "embed_out", "to_logits"}
HEADS_OUTSIDE = {"decoder", "head", "output", "proj", "proj_out", "logits"}
POSITIONS = re.compile(r"(?:^|[._])pe(?:$|[._])|pos(?:ition|_|\.|$|[a-z]*emb|[a-z]*enc)", re.IGNORECASE)


def are_tied(names: Iterable[str]) -> bool:
    """Whether equal matrices are the input embeddings of a vocabulary, perhaps with output heads, by their names.

    Models share these matrices by design, whereas equal layers are copies.
    """
    roles = [role_of(name) for name in names]
    return all(roles) and "input" in roles


def is_of_positions(name: str) -> bool:
    """Whether a tensor is named like a table of positions."""
    return POSITIONS.search(name) is not None


def role_of(name: str) -> str:
    """`input` for the embeddings of a vocabulary, `head` for an output head, empty for other tensors."""
    parts = name.removesuffix(".weight").split(".")
    is_outside = not any(part.isdecimal() for part in parts)
    if parts[-1] in INPUTS or (is_outside and parts[-1] in INPUTS_OUTSIDE):
        return "input"
    return "head" if parts[-1] in HEADS or (is_outside and parts[-1] in HEADS_OUTSIDE) else ""
