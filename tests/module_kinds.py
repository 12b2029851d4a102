"""Kinds of tensors by the modules that own them, against which kinds by names are tested."""

from collections.abc import Mapping

from torch import nn

from hf_sane.core._layer_kinds import FEED_FORWARD, LOW_RANK, RUNNING, LayerKind


def module_kinds(model: nn.Module) -> dict[str, LayerKind]:
    """Determine the kind of each tensor from the module that owns it.

    Args:
        model: Any module, also on the meta device.

    Returns:
        Kind by name in the state dict. Tensors of unknown modules are left out; classify them by their names.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds: dict[str, LayerKind] = {}
    for path, module in modules.items():
        dot = f"{path}." if path else ""
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            kind = "running_statistics" if name in RUNNING else _kind_of_module(dot + name, module, modules)
            if kind is not None and tensor is not None:
                kinds[dot + name] = kind
    return kinds


def _kind_of_module(name: str, module: nn.Module, modules: Mapping[str, nn.Module]) -> LayerKind | None:
    kind = type(module).__name__
    if LOW_RANK.search(name):
        return "low_rank"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm) or "Norm" in kind:
        return "norm"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, nn.Linear | nn.Bilinear) or kind == "Conv1D":  # the transposed linear layer of GPT-2
        parts = name.split(".")[:-1]
        around = [
            type(modules[".".join(parts[:depth])]).__name__ for depth in range(max(len(parts) - 2, 0), len(parts))
        ]
        inside = any("Attention" in owner or "Attn" in owner for owner in around)
        return (
            "attention"
            if inside and not any(word in part for part in parts[-2:] for word in FEED_FORWARD)
            else "linear"
        )
    if isinstance(module, nn.PReLU):
        return "other"
    return "embedding" if "Embed" in kind and not isinstance(module, nn.ModuleList) else None
