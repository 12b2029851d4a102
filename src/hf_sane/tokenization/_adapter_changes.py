"""Changes made by adapters: factors of every target module, from PEFT's folders and from loose files, or merged."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from hf_sane.core._adapters import ADAPTER_CONFIG, read_adapter_config
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.tokenization._adapters import REMEDY, Adapter, adapter_folder, note_factor
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint

# Files without a configuration: `...to_q_lora.down.weight` (diffusers), `unet:3:up` (cloneofsimo),
# `..._q.lora_up.weight` (kohya).
LOOSE_FACTOR = re.compile(r"^(?P<module>.+?)[._:](?:lora[._:](?:embedding_)?)?(?P<side>down|up|A|B)(\.weight)?$")
NEW_WORD = re.compile(r"^<[^<>]+>$")  # embeddings of new words: they change no weight of the base


def open_factors(
    source: str | Path | CheckpointSource, *, base: Source | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the changes that a LoRA adapter adds to its base: `s B A` per target module.

    Loose files do not always contain their scale `s = alpha / r`; without a tensor `<module>.alpha` it is 1.

    Args:
        source: Folder or Hub repo in PEFT's format, or a safetensors file with the keys of PEFT, diffusers,
            cloneofsimo's lora or kohya's scripts; a `Checkpoint` selects the subfolder and variant.
        base: The base model, required for adapters in PEFT's format with magnitudes (DoRA) or replaced tensors, whose
            changes depend on it.

    Returns:
        Target module to `A` `[r, inputs, ...]` as stored and `s B` `[outputs, r, ...]` in at least single precision.
        Biases and replaced tensors have their full names. For a change of full rank, `A` is the change and `s B` is
        the identity.

    Raises:
        FileNotFoundError: If there is no such file, folder or repo, or it holds no adapter.
        InvalidFileError: If it holds no factors or lacks one of a pair, if factors do not fit each other or are not
            finite, or if a tensor is unexpected.
        ValueError: If the base is required but missing, or is the wrong model.
    """
    folder = adapter_folder(source)
    if (folder / ADAPTER_CONFIG).is_file():
        with _reading_adapter(source):
            adapter = Adapter(folder.name, open_checkpoint(source), read_adapter_config(folder))
            relative = _relative(adapter)
        if base is not None or relative:
            return _changes(adapter, None if base is None else open_checkpoint(base))
        with _reading_adapter(source):
            return _changes(adapter, None)
    with _reading_adapter(source):
        return _loose_factors(source)


def merge_adapter(source: str | Path | CheckpointSource, base: Source | None = None) -> dict[str, Tensor]:
    """The base model with an adapter's changes merged in: `W + s B A` in the dtype of `W`.

    Args:
        source: Folder or Hub repo in PEFT's format.
        base: The base model; if `None`, the one that the adapter names.

    Raises:
        ValueError: If the base is unknown, or the adapter does not fit it.
        InvalidFileError: As in [`open_factors`].
    """
    folder = adapter_folder(source)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{source} has no {ADAPTER_CONFIG}; merge it into its base first, or compare two adapters")
    with _reading_adapter(source):
        adapter = Adapter(folder.name, open_checkpoint(source), read_adapter_config(folder))
    base = base or adapter.config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter.name} does not name its base model; pass it (--base)")
    found = dict(open_checkpoint(base))
    for module in adapter.modules:
        weight, bias = f"{module}.weight", f"{module}.bias"
        added = adapter.added_bias(module)
        if missing := [name for name in (weight, *([] if added is None else [bias])) if name not in found]:
            raise ValueError(f"the base of {adapter.name} lacks {missing}; pass the model that it was trained on")
        transposed = adapter.is_transposed(module)
        change = adapter.change(module, found[weight], transposed=transposed)
        found[weight] = (found[weight] + change).to(found[weight].dtype)
        if added is not None:
            found[bias] = (found[bias] + added).to(found[bias].dtype)
    return found | {name: adapter.tensors[stored] for name, stored in adapter.whole.items()}


def _reading_adapter(source: str | Path | CheckpointSource) -> AbstractContextManager[None]:
    return reading(str(source), expected="a LoRA adapter", remedy="save the adapter again", also=(RuntimeError,))


def _relative(adapter: Adapter) -> list[str]:
    """Tensors of the base that an adapter's changes depend on."""
    return [f"{module}.weight" for module in adapter.magnitudes] + list(adapter.whole)


def _changes(adapter: Adapter, base: Mapping[str, Tensor] | None) -> dict[str, tuple[Tensor, Tensor]]:
    """All changes of an adapter, as products."""
    relative = _relative(adapter)
    if base is None and relative:
        kinds = {"magnitudes (DoRA)": adapter.magnitudes, "tensors that replace those of the base": adapter.whole}
        raise ValueError(
            f"{adapter.name} holds {' and '.join(kind for kind, found in kinds.items() if found)}, such as "
            f"{relative[:3]}: its changes depend on the base model; pass the base"
        )
    if missing := [name for name in relative if name not in (base or {})]:
        raise ValueError(f"the base of {adapter.name} lacks {missing[:3]}; pass the model that it was trained on")
    found = {}
    for module in adapter.modules:
        if base is None or module not in adapter.magnitudes:
            found[module] = adapter.factors(module)
        else:
            transposed = adapter.is_transposed(module)
            change = adapter.change(module, base[f"{module}.weight"], transposed=transposed)
            found[module] = _as_product(change.mT if transposed else change)
        if (bias := adapter.added_bias(module)) is not None:
            found[f"{module}.bias"] = _as_product(bias[:, None])
    for name, stored in adapter.whole.items():
        assert base is not None
        tensor, start = adapter.tensors[stored], base[name]
        if tensor.shape != start.shape:
            raise ValueError(
                f"{name!r} is {list(tensor.shape)} in {adapter.name} and {list(start.shape)} in its base; name the "
                "model that it was trained on"
            )
        if tensor.is_floating_point() and tensor.ndim:  # not counters
            change = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) - start
            found[name] = _as_product(change if change.ndim > 1 else change[:, None])
    return found


def _as_product(change: Tensor) -> tuple[Tensor, Tensor]:
    return change, torch.eye(len(change), dtype=change.dtype)


def _loose_factors(source: str | Path | CheckpointSource) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors from a file without a configuration."""
    tensors = open_checkpoint(source)
    sides: dict[str, dict[str, str]] = {}
    others = []
    for name in tensors:
        if found := LOOSE_FACTOR.match(name):
            side = {"A": "down", "B": "up"}.get(found["side"], found["side"])
            note_factor(sides.setdefault(found["module"], {}), side, name, source)
        elif not NEW_WORD.match(name):
            others.append(name)
    if not sides:
        raise InvalidFileError(
            str(source),
            expected="a LoRA adapter",
            got=f"no factors (..down/..up or ..A/..B), but {list(tensors)[:3]}",
            remedy="pass a file or folder that holds an adapter",
        )
    if strange := [name for name in others if name.removesuffix(".alpha") not in sides]:
        raise ValueError(
            f"{source} holds {len(strange)} tensors beside LoRA factors and their alphas, such as {strange[:3]}, "
            "which change what the adapter does in unsupported ways (DoRA, Tucker factors, LoHa, LoKr, "
            f"OFT, full differences, biases); {REMEDY}"
        )
    if lonely := sorted(module for module, pair in sides.items() if len(pair) < 2):
        raise ValueError(f"{source} lacks one of the factors of {lonely[:3]}; save the adapter again")
    factors = {}
    for module, pair in sides.items():
        first, second = tensors[pair["down"]], tensors[pair["up"]]
        is_low = min(first.dtype.itemsize, second.dtype.itemsize) < 2  # 8-bit floats do not support arithmetic
        if min(first.ndim, second.ndim) < 2 or is_low or second.shape[1] != len(first) or not len(first):
            raise ValueError(
                f"factors of {module!r} in {source} do not fit: {list(first.shape)}, {list(second.shape)}; expected "
                f"[r, inputs] and [outputs, r] of 16 bits or more, got {first.dtype} and {second.dtype}"
            )
        if not (first.isfinite().all() and second.isfinite().all()):
            raise ValueError(f"{module!r} is not finite (NaN or infinite weights) in {source}; leave that adapter out")
        scale = _loose_scale(source, tensors, f"{module}.alpha", len(first))
        factors[module] = (first, second.to(torch.promote_types(second.dtype, torch.float32)) * scale)
    return factors


def _loose_scale(source: str | Path | CheckpointSource, tensors: Mapping[str, Tensor], name: str, rank: int) -> float:
    if name not in tensors:
        return 1.0
    alpha = tensors[name]
    if alpha.numel() != 1 or not alpha.isfinite().all():
        raise ValueError(f"expected one finite number as {name!r} in {source}, got {alpha.flatten()[:3].tolist()}")
    return alpha.item() / rank
