"""Inputs and results of workflows on networks of one architecture, which run together in a stack."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._adapters import ADAPTER_CONFIG
from hf_sane.core._names import natural_key
from hf_sane.core._types import StateDict
from hf_sane.hub._cards import auto_class, describe_config
from hf_sane.hub._push import network_folders, push_saved
from hf_sane.models.autoencoder_sane import AUTOENCODERS
from hf_sane.networks._images import ImageData, load_images
from hf_sane.networks._modules import find_architecture, has_registered
from hf_sane.networks._own_models import OwnModule
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import Classification
from hf_sane.records._files import folders_with
from hf_sane.records._run_record import RECORD
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.tokenization._adapters import REMEDY, adapter_folder
from hf_sane.tokenization._checkpoints import CheckpointSource, load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._loading import load_config, load_model
from hf_sane.tokenization._reading import read_network
from hf_sane.workflows.results import Result

SAFETENSORS = "model.safetensors"
Network = str | Path | nn.Module


@dataclass(kw_only=True)
class NetworksResult(Result):
    """Networks made by a workflow: `result[0]` is a module, `len(result)` is their number.

    Networks of this library are Transformers models; others are instances of the given or registered module.

    Attributes:
        stack: All networks, stacked so that they run together.
        include_code: Whether to save the modelling code with the networks.
        tokenizer: Tokenizer that is saved with networks that classify texts.
    """

    stack: StackedNetworks
    include_code: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None

    def __len__(self) -> int:
        return self.stack.num_models

    def __getitem__(self, index: int) -> nn.Module:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        return self.stack.model(index)

    def __iter__(self) -> Iterator[nn.Module]:
        return map(self.stack.model, range(len(self)))

    def modules(self) -> list[nn.Module]:
        """The networks as modules, in evaluation mode."""
        return list(self)

    def evaluate(self, images: str | ImageData, *, split: str = "test") -> Tensor:
        """Accuracy of each network on images, `[S]`.

        Args:
            images: Images, or a source for `load_images`.
            split: `"train"`, `"validation"` or `"test"`.
        """
        return Classification(open_images(images)).measure(self.stack, split)[0]

    def write(self, partial: Path) -> None:
        """Write the run record, which lists the networks that were already saved."""
        saved = sorted(path.parent.name for path in partial.glob("*/config.json"))
        replace(self.record, results={**self.record.results, "saved": saved}).save(partial / RECORD)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Save each network with a card and a run record in its own folder, for `from_pretrained`.

        Raises:
            FileExistsError: If `folder` holds something else.
        """
        self.save(folder)
        return Path(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the networks as one model repository, with the best on validation images at its root.

        Args:
            repo_id: `user/name`; created if missing.
            **options: `private`, `revision`, `include_code` and `api`, see [`push_saved`].

        Returns:
            URL of the commit.
        """
        return push_saved(replace(self).save, repo_id, **options)  # a copy, since its output is a temporary folder


def open_images(images: str | ImageData, **options: Any) -> ImageData:
    """Load images with `load_images` and its options; of loaded images, only size and channels are changed."""
    if not isinstance(images, ImageData):
        return load_images(images, **options)
    size, channels = options.get("image_size"), options.get("image_channels")
    images = images if size is None else images.resized(size)
    return images if channels is None else images.with_channels(channels)


def open_stack(
    sources: Sequence[Network], *, ignored: Sequence[str] = (), **weights: str
) -> tuple[StackedNetworks, list[str]]:
    """Open networks of one architecture; return them and their names.

    Args:
        sources: Modules, folders of networks, folders that contain these, or Hub repo ids. Files and folders with the
            tensors of a registered module are opened as that module.
        ignored: Configuration settings that may differ; the stack uses those of the first network.
        **weights: Which weights to read from each folder or repository: `subfolder`, `variant`.

    Raises:
        FileNotFoundError: If a folder is not a network and contains none.
        ValueError: If there are no networks, or their configurations differ.
    """
    named = [pair for index, source in enumerate(sources) for pair in _open(source, index, weights)]
    if not named:
        raise ValueError("expected at least one network, got none")
    (first_name, first), *rest = named
    known = _facts(first, ignored)
    for name, model in rest:
        if type(model) is not type(first) or _facts(model, ignored) != known:
            raise ValueError(
                f"expected networks of one architecture, but {name} differs from {first_name}: pass "
                "them one after the other"
            )
    own = getattr(first, "config", None)
    structure = own if isinstance(own, ZooConfig) else copy.deepcopy(first)
    return StackedNetworks.from_state_dicts(structure, [model.state_dict() for _, model in named]), [
        name for name, _ in named
    ]


def _open(source: Network, index: int, weights: dict[str, str]) -> list[tuple[str, nn.Module]]:
    if not isinstance(source, str | Path):
        return [(f"network_{index}", source.module if isinstance(source, OwnModule) else source)]
    place = find_source(source)
    if has_registered() and "variant" not in weights:
        opened = _open_registered(place, weights) if isinstance(place, Path) else _open_remote(source, weights)
        if opened:
            return opened
    _check_is_no_adapter(CheckpointSource(source, subfolder=weights.get("subfolder")))
    folders = [source] if isinstance(place, HubRepo) or "subfolder" in weights else network_folders(place)
    return [(str(folder), load_network(folder, **weights)) for folder in folders]


def load_network(source: str | Path, **weights: str) -> PreTrainedModel:
    """Load a Transformers model with the Auto class of its architecture, see [`auto_class`]."""
    where = {name: value for name, value in weights.items() if name == "subfolder"}
    config = load_config(source, **where)
    if config.model_type in AUTOENCODERS:
        raise ValueError(f"expected a network, got the SANE autoencoder {source}; sample networks from it first")
    name, _ = auto_class(config)
    network: PreTrainedModel = load_model(getattr(transformers, name), source, **weights)
    return network


def _check_is_no_adapter(source: CheckpointSource) -> None:
    """Raise an error for an adapter, since Transformers would open its base model instead."""
    with suppress(FileNotFoundError):
        if (adapter_folder(source) / ADAPTER_CONFIG).is_file():
            raise ValueError(f"expected a network, got the adapter {source}; {REMEDY}")


def _open_registered(place: Path, weights: dict[str, str]) -> list[tuple[str, nn.Module]]:
    """Networks of a registered module in a file, a folder or its subfolders; empty if there are none."""
    place = place / weights.get("subfolder", "")
    inside = [place] if place.is_file() or (place / SAFETENSORS).is_file() else folders_with(place, SAFETENSORS)
    found = []
    for path in sorted(inside, key=lambda path: natural_key(path.name)):
        state_dict: StateDict = dict(read_network(path).tensors)
        if (architecture := find_architecture(state_dict)) is None:
            return []
        found.append((str(path), architecture.network(state_dict)))
    return found


def _open_remote(source: str | Path, weights: dict[str, str]) -> list[tuple[str, nn.Module]]:
    """The network of a registered module in a Hub repository; empty if it is another network."""
    chosen = CheckpointSource(source, subfolder=weights.get("subfolder"))
    with suppress(FileNotFoundError):
        if (architecture := find_architecture(read_meta_state_dict(chosen))) is not None:
            return [(str(source), architecture.network(load_state_dict(chosen)))]
    return []


def _facts(model: nn.Module, ignored: Sequence[str]) -> dict[str, Any]:
    """Facts that networks of one architecture share: their configuration, or the shapes of their tensors."""
    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):
        return {name: value for name, value in describe_config(config).items() if name not in ignored}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


__all__ = ["NetworksResult"]
