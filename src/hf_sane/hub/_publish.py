"""Folders ready for the Hub: weights, configuration, run record and card.

Functions that save replace an unmodified artefact of the same kind, and refuse to overwrite anything else.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, Unpack, cast

import torch
from huggingface_hub import ModelCard, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import custom_object_save

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.image_processing_zoo import ZooImageProcessor
from hf_sane.hub._cards import CardOptions, network_card, sane_card
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.models.configuration_linear import LinearCodeConfig
from hf_sane.models.configuration_sane import CheckedConfig
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._image_sources import WHITE
from hf_sane.records._documents import read_document
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._files import write_atomically
from hf_sane.records._manifests import CARD
from hf_sane.records._outputs import add_file, output_folder
from hf_sane.records._patience import patiently
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.records._sources import HubRepo, find_source, parse_source
from hf_sane.sampling._export import (
    CONFIG,
    NETWORK,
    OWN_LIBRARY,
    PROVENANCE_FILE,
    Provenance,
    check_saved,
    save_module,
)
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._loading import is_own_module, load_config
from hf_sane.tokenization._pretrained import load_pretrained

SANE = "SANE folder"  # kind of artefact in manifests
IMAGE_PROCESSOR = "preprocessor_config.json"
ANCHORS = "anchors"


def save_sane(
    folder: str | Path,
    model: WeightAutoencoder,
    extractor: SANEFeatureExtractor,
    record: RunRecord,
    *,
    title: str = "SANE",
    network_config: ZooConfig | None = None,
    include_code: bool = False,
    anchors: Sequence[nn.Module] = (),
    **options: Unpack[CardOptions],
) -> Path:
    """Save an autoencoder with its weight tokenizer, run record and card.

    Args:
        folder: Receives config.json, model.safetensors, preprocessor_config.json, run.json and README.md.
        model: The autoencoder.
        extractor: Its weight tokenizer.
        record: Record of the pre-training run.
        title: Heading of the card.
        network_config: Configuration of a network of the zoo, for the code example.
        include_code: Also copy the modelling code, so that `AutoModel.from_pretrained(..., trust_remote_code=True)`
            works without this library (the weight tokenizer still needs it).
        anchors: Trained networks of one architecture, best first, to sample around without a zoo; saved in the
            subfolder `anchors`.
        **options: Facts of the card: `repo_id`, `datasets`, `license_id`.

    Returns:
        `folder`.

    Raises:
        ValueError: If model and weight tokenizer do not belong together.
        FileExistsError: If `folder` holds anything else, or was modified since it was written.
    """
    if model.config.token_dim != extractor.token_dim:
        raise ValueError(
            f"model and weight tokenizer must share token_dim, got {model.config.token_dim} and "
            f"{extractor.token_dim}; save the tokenizer that the model was trained with"
        )
    with output_folder(folder, SANE, replace=True) as partial:
        save_model(partial, model, auto_class="AutoModel", include_code=include_code)
        extractor.save_pretrained(partial)
        for index, anchor in enumerate(anchors):
            (place := partial / ANCHORS / f"anchor_{index}").mkdir(parents=True)
            save_module(place, anchor)
        record.save(partial / RECORD)
        write_sane_card(partial, title=title, network_config=network_config, **options)
    return Path(folder)


def load_sane(
    source: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[WeightAutoencoder, SANEFeatureExtractor]:
    """Load an autoencoder (a SANE or a linear code), in evaluation mode, and its weight tokenizer.

    Args:
        source: Folder or Hub repo, `owner/name` or `owner/name@revision`.
        revision: Branch, tag or commit of a repo.
        subfolder: Subfolder of the source that holds the autoencoder.
        dtype: Dtype of the model; by default the saved one.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a repository.
        InvalidFileError: If a file is damaged, the folder is incomplete, or files were changed or removed since it was
            written.
    """
    where = {"revision": revision, "subfolder": subfolder}
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    model = load_pretrained(_Autoencoder, source, "a SANE autoencoder", **where, **options)
    return model.eval(), SANEFeatureExtractor.load(source, **where)


class _Autoencoder:
    """Loads an autoencoder with the class of its model type, for [`load_pretrained`]."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> WeightAutoencoder:
        where = {key: options[key] for key in ("revision", "subfolder") if key in options}
        found, _ = patiently(PreTrainedConfig.get_config_dict, name, **where)
        if not found and any(Path(name).glob("*.safetensors")):  # otherwise Transformers says what is missing
            remedy = "copy it from the original, or save the autoencoder again"
            raise InvalidFileError(name, expected="a SANE autoencoder", got="no config.json", remedy=remedy)
        is_linear = found.get("model_type") == LinearCodeConfig.model_type
        return (LinearCode if is_linear else SANEModel).from_pretrained(name, **options)


def find_anchors(source: str | Path, *, revision: str | None = None, subfolder: str | None = None) -> Path | None:
    """Folder of the anchors saved with an autoencoder (see [`save_sane`]), or `None`.

    Args:
        source: Folder or Hub repo; see [`load_sane`].
        revision: Branch, tag or commit of a repo, such as the commit that `owner/name@branch` was loaded from.
        subfolder: Subfolder of the source that holds the autoencoder.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a repository.
    """
    place, inside = find_source(source), PurePosixPath(subfolder or "") / ANCHORS
    if isinstance(place, HubRepo):
        commit, patterns = revision or place.revision, [f"{inside}/**"]
        place = Path(patiently(snapshot_download, place.repo_id, revision=commit, allow_patterns=patterns))
    return place / inside if (place / inside).is_dir() else None


def loaded_commit(source: str, revision: str | None, subfolder: str | None = None) -> str | None:
    """Commit that a repository was loaded from, according to its cache folder; `None` for other folders."""
    place = parse_source(source, revision=revision)
    if isinstance(place, Path):
        return None
    file = PurePosixPath(subfolder or "") / "config.json"
    found = try_to_load_from_cache(place.repo_id, str(file), revision=place.revision)
    return Path(found).parents[len(file.parents) - 1].name if isinstance(found, str) else None


def load_record(source: str, commit: str | None, subfolder: str | None = None) -> RunRecord | None:
    """Run record of a saved model; `None` if there is none.

    Args:
        source: Folder or Hub repo.
        commit: Commit that the model was loaded from; see [`loaded_commit`].
        subfolder: Subfolder of the source that holds the model.

    Raises:
        InvalidFileError: If the record is damaged.
    """
    place, file = parse_source(source), PurePosixPath(subfolder or "") / RECORD
    if isinstance(place, Path):
        path = place / file
        return RunRecord.load(path) if path.is_file() else None
    try:
        return RunRecord.load(patiently(hf_hub_download, place.repo_id, str(file), revision=commit or place.revision))
    except EntryNotFoundError:  # also if it is not cached and the Hub cannot be reached
        return None


def write_sane_card(
    folder: str | Path,
    *,
    title: str = "SANE",
    network_config: ZooConfig | None = None,
    **options: Unpack[CardOptions],
) -> Path:
    """Write README.md into a SANE folder, from its configuration and run record.

    Args:
        folder: Folder with config.json, preprocessor_config.json and run.json, as written by pre-training.
        title: Heading of the card.
        network_config: Configuration of a network of the zoo, for the code example.
        **options: Facts of the card: `repo_id`, `datasets`, `license_id`.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If the folder has a README.md that was written or edited by hand.
    """
    card = sane_card(
        cast(CheckedConfig, load_config(folder)),
        SANEFeatureExtractor.from_pretrained(folder),
        RunRecord.load(Path(folder) / RECORD),
        title=title,
        network_config=network_config,
        **options,
    )
    return write_card(Path(folder), card)


def save_network(
    folder: str | Path,
    network: nn.Module,
    record: RunRecord,
    *,
    title: str = "Sampled network",
    base_model: str | None = None,
    include_code: bool = False,
    provenance: Provenance | None = None,
    origin: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Unpack[CardOptions],
) -> Path:
    """Save a sampled network with its run record and card, and check that it loads bit for bit.

    Args:
        folder: Receives config.json, model.safetensors, run.json, README.md and, if known, provenance.json and
            preprocessor_config.json.
        network: The network.
        record: Record of the sampling run. The image processor and the class names are taken from `data["images"]`
            (see `ImageData.describe`).
        title: Heading of the card.
        base_model: Hub repo id of the autoencoder it was sampled with.
        include_code: Also copy the modelling code, so that the network loads without this library.
        provenance: Origin of the network; by default the one in `folder`, if any.
        origin: Origin of a network that was not sampled, for the card; see [`network_card`].
        tokenizer: Tokenizer of a text classifier, to save with it.
        **options: Facts of the card: `repo_id`, `datasets`, `license_id`.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds anything else, or was modified since it was written.
        RuntimeError: If the saved network differs from `network`.
    """
    folder = Path(folder)
    if isinstance(network, PreTrainedModel) and not network.config.architectures:  # as `save_pretrained` would set it
        network.config.architectures = [type(network).__name__]
    if provenance is None and (folder / PROVENANCE_FILE).exists():
        provenance = Provenance.load(folder)
    card = network_card(
        network.config if isinstance(network, PreTrainedModel) else network,
        record,
        title=title,
        base_model=base_model,
        with_code=include_code,
        provenance=provenance,
        origin=origin,
        **options,
    )
    with output_folder(folder, NETWORK, replace=True) as partial:
        if isinstance(network, PreTrainedModel):
            with _labelled(network.config, record):
                save_model(partial, network, auto_class="AutoModelForImageClassification", include_code=include_code)
        else:
            save_module(partial, network)
            name_classes(partial, class_names(record))
        save_image_processor(partial, record, include_code=include_code)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        check_saved(network, partial)
        if provenance is not None:
            provenance.save(partial)
        record.save(partial / RECORD)
        write_card(partial, card)
    return folder


def save_model(partial: Path, model: PreTrainedModel, *, auto_class: str, include_code: bool) -> None:
    """`save_pretrained`, with or without the modelling code.

    Remote code that the model was loaded with is neither copied nor referred to: Transformers would run it for anyone
    who trusts the new repository.

    Args:
        partial: Folder from [`output_folder`].
        model: Model to save.
        auto_class: Auto class that loads it.
        include_code: Whether to copy its code.
    """
    vars(model.config).pop("auto_map", None)
    if not include_code:
        model.save_pretrained(partial)
        return
    with _code_included((type(model.config), "AutoConfig"), (type(model), auto_class)):
        try:
            model.save_pretrained(partial)
        finally:
            # Transformers adds the copied files to the configuration in memory; later saves would refer to them, too.
            vars(model.config).pop("auto_map", None)


def save_image_processor(partial: Path, record: RunRecord, *, include_code: bool) -> None:
    """Save an image processor that prepares image files as the run did, if the record describes its images."""
    images = record.data.get("images")
    if not isinstance(images, Mapping) or not images.get("mean") or (partial / IMAGE_PROCESSOR).exists():
        return
    size = images.get("image_size")
    processor = ZooImageProcessor(
        size=size if isinstance(size, int) else None,  # only square images are resized
        num_channels=len(images["mean"]),
        rescale_factor=images.get("white", WHITE) / WHITE,
        image_mean=images["mean"],
        image_std=images["std"],
    )
    with _code_included((ZooImageProcessor, "AutoImageProcessor")) if include_code else nullcontext():
        processor.save_pretrained(partial)


def class_names(record: RunRecord) -> Sequence[str]:
    """Names of the classes of the run's data; empty if they are unknown."""
    data = record.data.get("images", record.data.get("texts"))
    names: Sequence[str] = data.get("classes", ()) if isinstance(data, Mapping) else ()
    return names


def name_classes(partial: Path, names: Sequence[str]) -> None:
    """Add class names to the configuration of a user's own module."""
    path = partial / CONFIG
    settings = json.loads(path.read_text(encoding="utf-8"))
    if names and settings.get("library_name") == OWN_LIBRARY:  # other classes write configurations of their own
        settings |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        with write_atomically(path) as file:
            file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _labelled(config: PreTrainedConfig, record: RunRecord) -> Iterator[None]:
    """Within the block, the configuration has the class names of the run's data, if their number matches."""
    names, before = class_names(record), (config.id2label, config.label2id)
    if len(names) == config.num_labels:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    try:
        yield
    finally:
        config.id2label, config.label2id = before


def code_files(folder: Path) -> dict[str, str]:
    """Files that a saved model needs to load without this library: its modelling code and a configuration.

    Args:
        folder: Folder from [`save_sane`], [`save_network`] or `save_pretrained`; it is not changed.

    Returns:
        Texts by file name, including config.json (and preprocessor_config.json); empty if the code is already in the
        folder or part of Transformers.
    """
    if is_own_module(read_document(folder / CONFIG, expected="a configuration").mapping()):
        return {}  # a module of the user
    config: Any = load_config(folder)
    is_ours = isinstance(config, CheckedConfig | ZooConfig)
    if getattr(config, "auto_map", None) or not is_ours:
        return {}
    auto_class = AutoModel if isinstance(config, CheckedConfig) else AutoModelForImageClassification
    model_class = cast(type[PreTrainedModel], auto_class._model_mapping[type(config)])
    classes = [(type(config), "AutoConfig"), (model_class, auto_class.__name__)]
    is_network = auto_class is AutoModelForImageClassification and (folder / IMAGE_PROCESSOR).is_file()
    classes += [(ZooImageProcessor, "AutoImageProcessor")] if is_network else []
    with tempfile.TemporaryDirectory() as partial, _code_included(*classes):
        with torch.device("meta"):
            custom_object_save(model_class(config), partial, config=config)
        config.save_pretrained(partial)
        if is_network:
            ZooImageProcessor.from_pretrained(folder).save_pretrained(partial)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(partial).iterdir())}


@contextmanager
def _code_included(*classes: tuple[Any, str]) -> Iterator[None]:
    """Within the block, `save_pretrained` copies the code of classes, given with the Auto class that loads each.

    Transformers stores this setting in the classes, which are restored at the end.
    """
    before = [(cls, "_auto_class" in vars(cls), cls._auto_class) for cls, _ in classes]
    for cls, auto_class in classes:
        cls.register_for_auto_class(auto_class)
    try:
        yield
    finally:
        for cls, had_own, value in before:
            if had_own:
                cls._auto_class = value
            else:
                del cls._auto_class


def write_card(folder: Path, card: ModelCard) -> Path:
    """Write `card` as README.md of `folder`, unless one was written or edited by hand; returns `folder`."""
    with add_file(folder, CARD) as partial:
        partial.write_text(str(card), encoding="utf-8")
    return folder
