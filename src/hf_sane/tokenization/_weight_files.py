"""Choose the file with the weights in a folder or repository, or explain why there is none."""

import re
import shlex
from collections.abc import Collection
from pathlib import PurePosixPath

from hf_sane.records._errors import name_some
from hf_sane.records._file_kinds import PICKLE_SUFFIXES

SAFETENSORS_NAMES = ("model.safetensors", "adapter_model.safetensors", "diffusion_pytorch_model.safetensors")
INDEX_SUFFIX = ".index.json"
PICKLE_INDEX_SUFFIX = ".bin.index.json"  # Transformers' name for an index of pickle shards
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$")
# The same weights in another precision, or averaged: `model.fp16.safetensors`.
VARIANT = re.compile(r"(?P<stem>.+)\.(?P<variant>fp16|fp32|bf16|fp8|int8|non_ema|ema)\.safetensors$")
UNREAD_SUFFIXES = (
    ".gguf",
    ".onnx",
    ".h5",
    ".keras",
    ".msgpack",
    ".npz",
    ".pb",
    ".tflite",
    ".mlmodel",
    ".ot",
    ".tar",
    ".zip",
)


def choose_weights(
    where: str, files: Collection[str], *, subfolder: str | None = None, variant: str | None = None, local: bool
) -> str:
    """Choose the file to read, a safetensors file or the index of its shards.

    Args:
        where: Name of the folder or repository, for messages.
        files: Paths of its files, separated by `/`; for a local folder, the files that messages may name.
        subfolder: Subfolder to read from.
        variant: Which of several precisions to read, as in Transformers: `fp16` for `model.fp16.safetensors`.
        local: Whether it is a local folder, whose files can be passed by path.

    Returns:
        One of `files`: a file with a name used by Transformers, PEFT or diffusers, or the only safetensors file.

    Raises:
        FileNotFoundError: If there is none, or the choice is ambiguous; the message lists the candidates and how to
            choose.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder and subfolder.strip("/") else ""
    inside = {path.removeprefix(prefix) for path in files if path.startswith(prefix)}
    here = sorted(path for path in inside if "/" not in path)
    for name in SAFETENSORS_NAMES:
        for candidate in _names(name, variant):
            if candidate in here:
                return prefix + candidate
    loose = [name for name in here if name.endswith(".safetensors") and not SHARD.search(name)]
    fitting = [name for name in loose if _variant(name) == variant]
    if len(fitting) == 1:
        return prefix + fitting[0]
    raise FileNotFoundError(
        f"{where} {_lack(subfolder, variant, len(fitting))}; "
        + (
            "; ".join(_advice(here, fitting, inside, prefix, local=local))
            or f"it holds {name_some(sorted(inside)) or 'no files'}"
        )
    )


def is_index(file: str) -> bool:
    """Whether a file is an index of shards, by its name: `model.safetensors.index.json`, `...index.fp16.json`."""
    return re.search(r"\.safetensors\.index(\.\w+)?\.json$", file) is not None


def is_pickle_name(file: str) -> bool:
    """Whether a file on the Hub is a pickle (which could run code) or an index of pickles, judged by its name."""
    return file.lower().endswith((*PICKLE_SUFFIXES, PICKLE_INDEX_SUFFIX))


def _names(name: str, variant: str | None) -> tuple[str, str]:
    """Transformers' names for a file and the index of its shards."""
    if variant is None:
        return name, f"{name}{INDEX_SUFFIX}"
    stem = name.removesuffix(".safetensors")
    return f"{stem}.{variant}.safetensors", f"{name}.index.{variant}.json"


def _variant(name: str) -> str | None:
    found = VARIANT.match(name)
    return found["variant"] if found else None


def _lack(subfolder: str | None, variant: str | None, count: int) -> str:
    place = f" in its folder {subfolder}" if subfolder else ""
    kind = "" if variant is None else f" of the variant {variant}"
    if count:
        return f"holds {count} safetensors files{place}{kind} and none of {', '.join(SAFETENSORS_NAMES)}"
    return f"holds no safetensors{place}{kind}"


def _advice(here: list[str], fitting: list[str], inside: Collection[str], prefix: str, *, local: bool) -> list[str]:
    """Advice on which files exist, and how to choose one."""
    if "zoo.json" in here:
        return ["it is a zoo of networks: pass it as a zoo (--zoo)"]
    found = []
    if fitting:
        found.append(f"{'pass the file itself' if local else 'download one (hf-sane pull)'}: {name_some(fitting)}")
    variants = {variant: name for name in here if (variant := _variant(name)) is not None and name not in fitting}
    if variants:
        found.append(
            f"it holds {name_some(variants.values())}: choose with --variant {' or '.join(variants)} (variant=)"
        )
    plain = [
        name for name in here if name in SAFETENSORS_NAMES or name.removesuffix(INDEX_SUFFIX) in SAFETENSORS_NAMES
    ]
    if plain and not fitting:
        found.append(f"it holds {name_some(plain)}: leave the variant out")
    if pickles := [name for name in here if is_pickle_name(name) and not SHARD.search(name)]:
        how = "pass the file itself, which is opened with weights_only=True"
        if not local:
            how = (
                "not downloaded, since it could run code; ask its author for safetensors, or download it with hf-sane "
                "pull --allow-pickle"
            )
        found.append(f"it holds {name_some(pickles)}, in PyTorch's format: {how}")
    weights = (".safetensors", *PICKLE_SUFFIXES, INDEX_SUFFIX, PICKLE_INDEX_SUFFIX)
    below = [PurePosixPath(path) for path in sorted(inside) if "/" in path and path.endswith(weights)]
    if below and not found:
        folders = list(dict.fromkeys(path.parent.as_posix() for path in below))
        found.append(
            f"it holds weights in {name_some(folders)}: choose one with --subfolder "
            f"{shlex.quote(prefix + folders[0])} (subfolder=)"
        )
    if (unread := [name for name in here if name.lower().endswith(UNREAD_SUFFIXES)]) and not found:
        found.append(f"it holds {name_some(unread)}, which cannot be read: use safetensors, or convert the file")
    return found
