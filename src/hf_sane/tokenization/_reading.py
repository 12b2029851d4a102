"""Read networks from any source for the weight tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor, nn

from hf_sane.core._layer_kinds import LayerKind, possible_kinds
from hf_sane.tokenization._checkpoints import Source, load_state_dict
from hf_sane.tokenization._lazy_checkpoints import LazyCheckpoint, open_checkpoint
from hf_sane.tokenization._saved_form import as_saved
from hf_sane.tokenization._state_dicts import strip_prefixes


@dataclass(frozen=True)
class Checkpoint:
    """A network that was read from a source.

    Attributes:
        tensors: Tensors by name, without wrapper prefixes; those of large files are read on access.
        kinds: Kinds of layers, by the names of their weights or only tensors; others are guessed.
        order: Names in the order of the source.
        aliases: Names of shared tensors that files omit, mapped to the names that they keep, if a module defines them.
    """

    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, LayerKind]
    order: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> Self:
        """The checkpoint of tensors, with kinds that are guessed from names and shapes."""
        floating = {n: t for n, t in _outlines(tensors).items() if isinstance(t, Tensor) and t.is_floating_point()}
        shapes = {name: tuple(tensor.shape) for name, tensor in floating.items() if tensor.numel()}
        kinds = {name: possible_kinds(name, shapes)[0] for name in shapes}
        return cls(tensors, kinds, tuple(tensors), aliases or {})

    @property
    def outlines(self) -> dict[str, Tensor]:
        """Tensors for which only name, shape, dtype and sharing matter, in the order of the source."""
        outlines = _outlines(self.tensors)
        return {name: outlines[name] for name in self.order}


def read_network(source: Source | Checkpoint, *, revision: str | None = None, lazy: bool = False) -> Checkpoint:
    """Read a network from any source.

    Args:
        source: State dict, module, path (safetensors, folder, weights-only pickle) or Hub repo id. A Transformers
            module is read as `save_pretrained` would write it, see [`as_saved`].
        revision: Branch, tag or commit of a Hub repo.
        lazy: Whether to read tensors of safetensors on access.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder or repo are missing.
        InvalidFileError: If a file is damaged or has an unsupported format.
        TypeError: If `source` is nothing of the above.
    """
    if isinstance(source, Checkpoint):
        return source
    source = as_saved(source)
    tensors = open_checkpoint(source, revision=revision) if lazy else load_state_dict(source, revision=revision)
    return Checkpoint.of(tensors, _ties(source))


def _outlines(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors.outlines if isinstance(tensors, LazyCheckpoint) else tensors


def _ties(source: Source) -> dict[str, str]:
    """Shared tensors of a Transformers model: names that its files omit, mapped to the names that they keep.

    The names are those of `load_state_dict`; empty for other sources.
    """
    if not isinstance(source, nn.Module):
        return {}
    shown = {stored: name for name, stored in strip_prefixes({name: name for name in source.state_dict()}).items()}
    ties = {}
    for path, module in source.named_modules():
        dot = f"{path}." if path else ""
        for left_out, kept in (getattr(module, "all_tied_weights_keys", None) or {}).items():
            if dot + left_out in shown and dot + kept in shown:
                ties[shown[dot + left_out]] = shown[dot + kept]
    return ties
