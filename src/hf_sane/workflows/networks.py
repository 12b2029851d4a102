"""Networks for workflows: images classifiers of one architecture, from modules, folders or the Hub, as one stack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageClassification

from hf_sane.architectures.modeling_zoo import ZooPreTrainedModel
from hf_sane.hub.cards import describe_config
from hf_sane.networks.stacked import StackedNetworks
from hf_sane.records.sources import HubRepo, find_source
from hf_sane.tokenization.loading import load_model

Network = str | Path | ZooPreTrainedModel


def open_stack(sources: Sequence[Network], *, ignored: Sequence[str] = ()) -> tuple[StackedNetworks, list[str]]:
    """Open networks of one architecture, and say what they are called.

    Args:
        sources: Modules, folders of networks, folders that hold such folders, Hub repo ids.
        ignored: Settings of the configuration that may differ; the stack has those of the first network.

    Raises:
        FileNotFoundError: If a folder neither is a network nor holds any.
        ValueError: If there are none, or they differ in their configuration.
    """
    named = [pair for source in sources for pair in _open(source)]
    if not named:
        raise ValueError("expected at least one network, got none")
    (first_name, first), *rest = named
    for name, model in rest:
        if type(model) is not type(first) or _facts(model, ignored) != _facts(first, ignored):
            raise ValueError(
                f"{name} is of another architecture than {first_name}; expected networks of one architecture: take them one "
                "after the other"
            )
    stack = StackedNetworks.from_state_dicts(first.config, [model.state_dict() for _, model in named])
    return stack, [name for name, _ in named]


def _open(source: Network) -> list[tuple[str, Any]]:
    if not isinstance(source, str | Path):
        return [(type(source).__name__, source)]
    place = find_source(source)
    if isinstance(place, HubRepo):
        return [(str(source), load_model(AutoModelForImageClassification, source))]
    return [(str(folder), load_model(AutoModelForImageClassification, folder)) for folder in network_folders(place)]


def _facts(model: Any, ignored: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in describe_config(model.config).items() if name not in ignored}


def network_folders(place: Path) -> list[Path]:
    """A folder that is a network, or the networks inside it.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if (place / "config.json").is_file():
        return [place]
    inside = [path.parent for path in place.glob("[!.]*/config.json")]
    if not inside:
        raise FileNotFoundError(f"no network in {place}; expected config.json there, or in folders inside it")
    return sorted(inside, key=lambda folder: (len(folder.name), folder.name))  # network_2 before network_10
