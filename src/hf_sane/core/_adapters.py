"""Attach LoRA adapters in PEFT's format to named modules, save them without local paths, and verify them by loading.

`peft` (the `train` extra) is imported where it is used, since only adapters require it.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from hf_sane.records._documents import Entry, read_document
from hf_sane.records._errors import reading
from hf_sane.records._manifests import CARD
from hf_sane.records._outputs import check_finished, output_folder
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, find_source, hub_id

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

AGAIN = "save the adapter again"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = "adapter"  # the job of manifests


# Fields that are used here, in addition to the numbers.
FIELD_TYPES: dict[str, Any] = {
    "bias": Literal["none", "all", "lora_only"],
    "exclude_modules": str | list[str],
    "layers_pattern": str | list[str],
    "layers_to_transform": int | list[int],
    "lora_bias": bool,
    "modules_to_save": list[str],
    "target_modules": str | list[str],
    "use_dora": bool,
    "use_rslora": bool,
}
EXPRESSIONS = ("exclude_modules", "layers_pattern", "modules_to_save", "target_modules")


def require_hub_id(name: str | None) -> str:
    """Return `name` if it is the id of a repository on the Hub.

    Raises:
        ValueError: If it is `None`, a local path, or no valid id.
    """
    if (found := hub_id(name)) is None:
        raise ValueError(
            f"expected the Hub repo id of the base model, got {name!r}; an adapter cannot be used without its base, "
            "so publish the base first and pass its repository (organisation/name), not a local path"
        )
    return found


def match_modules(model: nn.Module, names: Sequence[str], *, excluded: Sequence[str] = ()) -> list[str]:
    """Full names of the modules that `names` refer to in PEFT, by a full name or the last parts of one.

    Args:
        model: Model to search.
        names: Names such as `"q_proj"` or `"encoder.0.attention.q_proj"`.
        excluded: Modules that are left out with all their submodules.

    Raises:
        ValueError: If a name matches no module of `model`.
    """
    known = [
        name for name, _ in model.named_modules() if name and not any(f"{name}.".startswith(f"{e}.") for e in excluded)
    ]
    found = {name: [full for full in known if f".{full}".endswith(f".{name}")] for name in names}
    if missing := [name for name, full in found.items() if not full]:
        last = sorted({full.rpartition(".")[2] for full in known if isinstance(model.get_submodule(full), nn.Linear)})
        raise ValueError(f"{type(model).__name__} has no module called {missing}; its linear layers are {last}")
    chosen = {full for matches in found.values() for full in matches}
    return [name for name in known if name in chosen]


def attach_lora(model: nn.Module, config: "LoraConfig") -> "PeftModel":
    """Freeze `model` and add low-rank maps to its targets: `W x + (alpha / r) B A x`, with random `A` and zero `B`.

    Source: Hu et al., LoRA (arXiv:2106.09685), as implemented by PEFT. The model is changed in place.
    """
    from peft import get_peft_model

    with quiet_peft():
        return get_peft_model(model, config)


def adapter_tensors(model: "PeftModel") -> dict[str, Tensor]:
    """Tensors of the adapter, by their names in its file."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, save_embedding_layers=False)


def adapter_size(model: "PeftModel") -> dict[str, int | float]:
    """Size of an adapter, compared with its base.

    Returns:
        `adapter_parameters`: number of scalars in the file of the adapter, including trained copies and running
        statistics; `base_parameters`: number of scalars of the base model, including statistics; `share`: their ratio.
    """
    adapter = sum(tensor.numel() for tensor in adapter_tensors(model).values())
    base = sum(tensor.numel() for tensor in model.state_dict().values()) - adapter
    return {"adapter_parameters": adapter, "base_parameters": base, "share": adapter / base}


def save_adapter(
    model: "PeftModel",
    folder: str | Path,
    *,
    base_model: str | None,
    base: nn.Module | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Save an adapter (adapter_config.json, adapter_model.safetensors); an unmodified earlier one is replaced.

    PEFT records where the base was loaded from, which may be a local path, and writes a card that names it; here, the
    given base is recorded, and the card is written by `hf_sane.hub`.

    Args:
        model: Base model with adapter.
        folder: New or empty folder, or an adapter that was saved here.
        base_model: Hub repo id of the base; anything else is saved as unknown (null).
        base: Unmodified copy of the base; the saved adapter is loaded onto a copy, and all tensors are compared.
        state_dict: State dict of `model`, if it is distributed over processes.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds anything else, or was modified since it was written.
        RuntimeError: If base and saved adapter do not reproduce `model`.
    """
    settings: dict[str, Any] = {} if state_dict is None else {"state_dict": state_dict}
    with output_folder(folder, ADAPTER, replace=True) as partial:
        # With "auto", PEFT would check on the Hub whether the vocabulary of the base changed; weights have none.
        model.save_pretrained(str(partial), save_embedding_layers=False, **settings)
        (partial / CARD).unlink(missing_ok=True)
        config = json.loads((partial / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = hub_id(base_model)
        for key in ("target_modules", "exclude_modules"):
            if isinstance(config.get(key), list):  # PEFT stores a set, whose order varies between runs
                config[key] = sorted(config[key])
        (partial / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if base is not None:
            _check_round_trip(model, base, partial)
    return Path(folder)


def load_adapter(model: nn.Module, source: str | Path) -> "PeftModel":
    """Load a saved adapter onto its base, like `PeftModel.from_pretrained`, but raise errors for unmatched tensors.

    Args:
        model: The base, which is changed in place and left in evaluation mode.
        source: Folder of the adapter, or its Hub repo, `owner/name` or `owner/name@revision`.

    Returns:
        The model with its adapter; `merge_and_unload()` gives an ordinary model.

    Raises:
        ValueError: If tensors of the adapter are missing, for which PEFT only warns, or do not fit the base, which
            PEFT ignores.
        InvalidFileError: If the folder is incomplete, or files were removed or changed since it was written.
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights

    folder = str(fetch_adapter(source))
    with quiet_peft():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            loaded = PeftModel.from_pretrained(model, folder)
        except UserWarning as warning:
            raise ValueError(f"{source} does not hold the whole adapter: {warning}; save it again") from warning
    places = adapter_tensors(loaded).keys() | loaded.state_dict().keys()
    if unused := sorted(load_peft_weights(folder, device="cpu").keys() - places):
        raise ValueError(
            f"{source} holds {len(unused)} tensors that do not fit {type(model).__name__} and adapter_config.json, "
            f"such as {unused[:3]}, so PEFT does not load them; load the base that the adapter was trained on"
        )
    return loaded


def fetch_adapter(source: str | Path) -> Path:
    """The folder of an adapter, with settings and safetensors downloaded if it is a repository.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a repository.
        InvalidFileError: If the folder is incomplete, or files were removed or changed since it was written.
    """
    place = find_source(source)
    if isinstance(place, HubRepo):
        files = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        return Path(patiently(snapshot_download, place.repo_id, revision=place.revision, allow_patterns=files))
    check_finished(place)
    return place


def _check_round_trip(model: "PeftModel", base: nn.Module, folder: Path) -> None:
    written, read = model.state_dict(), load_adapter(deepcopy(base), folder).state_dict()
    if differing := [
        name
        for name in sorted(written.keys() | read.keys())
        if name not in written or name not in read or not torch.equal(written[name], read[name])
    ]:
        raise RuntimeError(
            f"base and adapter do not reproduce the saved model: tensors {differing} differ; add the modules that own "
            "them (such as BatchNorm) to modules_to_save, and pass the base as it was before training"
        )


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The settings of a saved adapter.

    Raises:
        FileNotFoundError: If `folder` has no such file.
        InvalidFileError: If it holds no JSON object, or a field that is used here is invalid.
    """
    check_finished(folder)
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {ADAPTER_CONFIG} in {folder}; pass a folder from save_adapter()")
    config = read_document(path, expected="the settings of an adapter", remedy=AGAIN)
    expressions: list[Entry] = []
    for name, wanted in FIELD_TYPES.items():
        if (entry := config.get(name)) is not None:
            value = entry.of_type(wanted)
            if name in EXPRESSIONS:
                expressions += [entry] if isinstance(value, str) else entry.entries()
    for name, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        patterns = dict(found.items()) if (found := config.get(pattern)) else {}
        for expression in patterns:
            with reading(path, field=pattern, expected="regular expressions", remedy=AGAIN, also=(re.error,)):
                re.compile(expression)
        stated = config[name] if config.mapping().get("peft_type") == "LORA" else config.get(name)
        for number in (stated, *patterns.values()):
            if number is not None:
                number.whole(at_least=1) if name == "r" else number.number()
    for entry in expressions:
        with reading(path, field=entry.field, expected="a regular expression", remedy=AGAIN, also=(re.error,)):
            re.compile(entry.value)
    return config.mapping()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence the warning of Transformers 5 whenever PEFT checks whether a model recomputes activations."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
