"""Read one network of a repository as a row of a zoo: check its header, download its files, tokenize its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layout import LayerOrder, Layout
from hf_sane.core._types import StateDict
from hf_sane.networks._stacked import empty_model
from hf_sane.records._documents import parse_document
from hf_sane.records._errors import name_some, reading
from hf_sane.records._files import write_atomically
from hf_sane.tokenization._checkpoints import load_state_dict, load_whole, parse_index, read_safetensors
from hf_sane.tokenization._formats import WHOLE, weights_reader
from hf_sane.tokenization._state_dicts import choose_state_dict, choose_tensors
from hf_sane.zoo._facts import (
    PER_RUN_SETTINGS,
    architecture_facts,
    architecture_key,
    config_classes,
    foreign_facts,
    layout_key,
)
from hf_sane.zoo._records import ModelRecord
from hf_sane.zoo.importing._saved_facts import saved_facts, saved_times
from hf_sane.zoo.importing._settings import ImportSettings
from hf_sane.zoo.importing._sources import Repository, is_pickled

CONFIG_NAMES = ("config.json", "adapter_config.json")
MAX_CONFIG_BYTES = 2**20
MAX_PADDING = 8  # limit of token bytes, relative to file bytes, since rows much shorter than a token are padded
MAX_SCALARS = 2**31 - 1  # of one row, since Arrow's list offsets are int32


@dataclass(frozen=True, slots=True)
class ImportedNetwork:
    """An imported network in the work folder, before it is written to the zoo.

    Attributes:
        properties: Values by column, including `run_id`, `layout` and `architecture`.
        layout: `Layout.to_dict`.
        architecture: Settings, as in `zoo.json`.
        content: SHA-256 of layout and weights.
        path: File with the tensors.
        times: Epoch and step that the file stores beside the weights.
        saved: Hyper-parameters and results that it stores beside them.
    """

    properties: Mapping[str, Any]
    layout: Mapping[str, Any]
    architecture: Mapping[str, Any]
    content: str
    path: Path
    times: Mapping[str, int]
    saved: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> "ImportedNetwork":
        """Read a network from [`import_network`], and verify its digests.

        Raises:
            InvalidFileError: If the file is damaged or was changed.
        """
        remedy = "remove it: the network is imported again"
        tensors = read_safetensors(path)
        with safe_open(path, framework="pt") as file:
            facts = parse_document((file.metadata() or {}).get("facts", ""), path, remedy=remedy)
        known = {name: facts[name].mapping() for name in ("properties", "layout", "architecture")}
        layout = Layout.from_entry(facts["layout"])
        keys = layout_key(layout), architecture_key(known["architecture"])
        if (found := tuple(known["properties"].get(name) for name in ("layout", "architecture"))) != keys:
            facts["properties"].fail(f"the layout and architecture {keys}", got=found)
        if (content := _content(layout, tensors)) != facts["content"].text():
            facts["content"].fail(f"the digest of the tensors, {content}")
        times = {name: time.whole() for name, time in facts["times"].items()}
        saved = facts["saved"].mapping()
        return cls(**known, content=content, path=path, times=times, saved=saved)

    def record(self, properties: Mapping[str, Any]) -> ModelRecord:
        """The network as a row, with additional columns."""
        with safe_open(self.path, framework="pt") as file:
            names = [entry["name"] for entry in self.layout["template"]]
            template = {name: file.get_tensor(f"template.{name}") for name in names}
            return ModelRecord(file.get_tensor("tokens"), template, {**self.properties, **properties})


def network_files(repository: Repository, file: str, arguments: ImportSettings) -> dict[str, list[str] | None]:
    """Files of one network and the tensors to read from each (all if `None`), after a check of their size.

    Raises:
        ValueError: If they are too large, an index names missing files, or pickles are not allowed.
    """
    if is_pickled(file, repository.readers) and not arguments.allow_pickle:
        raise ValueError("it is a pickle, which can run code when it is opened; allow pickles (--allow-pickle)")
    _check_bytes(file, repository.files[file], arguments)
    if repository.readers[file] != "index":
        return {file: None}
    folder = PurePosixPath(file).parent
    shards: dict[str, list[str] | None] = {
        (folder / name).as_posix(): names for name, names in parse_index(repository.fetch(file)).items()
    }
    if missing := [name for name in shards if name not in repository.files]:
        raise ValueError(f"{file} names shards that are missing: {', '.join(missing)}")
    _check_bytes(file, sum(repository.files[name] for name in shards), arguments)
    return shards


def import_network(
    repository: Repository, file: str, files: Mapping[str, list[str] | None], arguments: ImportSettings, path: Path
) -> ImportedNetwork:
    """Check the headers, download the files, and write the network as tokens to `path`.

    Layers are arranged in the canonical order of their names (`layer2` before `layer10`), since files do not preserve
    the order of the network; layers of this library's networks keep their own order.

    Args:
        repository: The repository.
        file: Weights or index.
        files: Files from [`network_files`].
        arguments: Settings of the import.
        path: File to write.

    Raises:
        ValueError: If the network cannot be a row of a zoo, with the reason.
        TypeError: If it holds tensors that are not weights (complex or sparse).
    """
    config = _read_config(repository, file)
    if not is_pickled(file, repository.readers):
        header: StateDict = {}
        for name, wanted in files.items():
            found = repository.read_header(name)
            if missing := sorted(set(wanted or ()) - found.keys()):
                raise ValueError(f"{name} lacks {missing[:3]}, which its index lists there")
            header |= found if wanted is None else {tensor: found[tensor] for tensor in wanted}
        _check_layout(
            Layout.from_state_dict(choose_tensors(header, file, key=arguments.key), **arguments.token_settings),
            arguments,
        )
    local = {name: repository.fetch(name) for name in files}
    place = repository.fetch(file) if file not in local else local[file]
    state_dict, times, saved = _weights_and_facts(place, arguments.key)
    own = _own_config(config, state_dict)
    if own is not None:
        state_dict = {name: state_dict[name] for name in empty_model(own).state_dict()}
    order: LayerOrder = "names" if own is None else "given"
    layout = Layout.from_state_dict(state_dict, order=order, **arguments.token_settings)
    _check_layout(layout, arguments)
    tokens = _checked_tokens(state_dict, layout)
    architecture, settings = foreign_facts(config) if own is None else architecture_facts(own)
    properties = {
        **repository.card.columns,
        **{name: getattr(own, name) for name in PER_RUN_SETTINGS if hasattr(own, name)},
        "repo_id": repository.repo_id,
        "file": file,
        "revision": repository.revision,
        "num_weights": layout.num_weights,
        "file_bytes": sum(repository.files[name] for name in files),
        "layout": layout_key(layout),
        "architecture": architecture,
    }
    tensors = {"tokens": tokens} | {f"template.{n}": t.contiguous() for n, t in layout.template.items()}
    facts: dict[str, Any] = {
        "properties": properties,
        "layout": layout.to_dict(),
        "architecture": settings,
        "content": _content(layout, tensors),
        "times": times,
        "saved": saved,
    }
    with write_atomically(path, durable=False) as partial:  # `ImportedNetwork.load` compares digests
        save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
    return ImportedNetwork(**facts, path=path)


def _weights_and_facts(path: Path, key: str | None) -> tuple[StateDict, dict[str, int], dict[str, Any]]:
    """Weights of a file; the epoch and step, and other facts that trainers store beside them."""
    if weights_reader(path) not in WHOLE:
        return load_state_dict(path, key=key), {}, {}
    content = load_whole(path)
    return choose_state_dict(content, path, key=key), saved_times(content), saved_facts(content)


def _check_bytes(file: str, size: int, arguments: ImportSettings) -> None:
    if size > arguments.max_bytes:
        raise ValueError(f"{file} takes {size:,} bytes, the limit is {arguments.max_bytes:,} (--max-size)")


def _check_layout(layout: Layout, arguments: ImportSettings) -> None:
    """Raise an error if a network does not fit into a row, according to its layout."""
    scalars = layout.num_tokens * layout.token_dim
    limit = min(MAX_PADDING * arguments.max_bytes // 4, MAX_SCALARS)
    if scalars > limit:
        raise ValueError(
            f"its {layout.num_weights:,} weights would take {scalars:,} scalars as tokens, padding included, the "
            f"limit is {limit:,}; use a smaller token_dim or the dense layout"
        )
    if arguments.max_tokens is not None and scalars > arguments.max_tokens * layout.token_dim:
        tokens = scalars // layout.token_dim
        raise ValueError(f"it has {tokens:,} tokens, the limit is {arguments.max_tokens:,} (--max-tokens)")
    carried = sum(
        tensor.numel() * tensor.dtype.itemsize for tensor in layout.template.values() if not tensor.is_floating_point()
    )
    weights = sum(
        spec.numel * getattr(torch, spec.dtype).itemsize for layer in layout.layers for spec in layer.tensors
    )
    if carried > weights:
        raise ValueError(
            f"{carried:,} of its {carried + weights:,} bytes are integers: its weights are quantised, and cannot be "
            "tokens"
        )


def _checked_tokens(state_dict: StateDict, layout: Layout) -> Tensor:
    """Tokens `[N, D]` float32 that restore the weights exactly."""
    tokens = layout.tokens(state_dict)
    if bad := [
        name for name, tensor in state_dict.items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]:
        raise ValueError(f"NaN or infinite weights in {name_some(bad)}")
    narrow = tokens.float()
    if tokens.dtype == torch.float64 and not torch.equal(narrow.double(), tokens):
        raise ValueError("it has float64 weights that float32 tokens cannot hold exactly; convert it first")
    return narrow


def _read_config(repository: Repository, file: str) -> dict[str, Any]:
    """The configuration in a network's folder; empty if there is none."""
    for name in CONFIG_NAMES:
        path = (PurePosixPath(file).parent / name).as_posix()
        if 0 < repository.files.get(path, 0) <= MAX_CONFIG_BYTES:
            with reading(path, expected="a JSON object", remedy="correct or remove the configuration"):
                config = json.loads(repository.fetch(path).read_text(encoding="utf-8"))
                if not isinstance(config, dict):
                    raise TypeError(f"the JSON is a {type(config).__name__}")
            return config
    return {}


def _own_config(config: Mapping[str, Any], state_dict: StateDict) -> ZooConfig | None:
    """A configuration of this library, if this is one and its tensors match the network."""
    cls = config_classes().get(str(config.get("model_type")))
    if cls is None:
        return None
    own = cls.from_dict(dict(config))
    expected = {name: tensor.shape for name, tensor in empty_model(own).state_dict().items()}
    return own if expected == {name: tensor.shape for name, tensor in state_dict.items()} else None


def _content(layout: Layout, tensors: Mapping[str, Tensor]) -> str:
    digest = sha256(layout.signature.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
