"""Facts about a zoo besides its rows, in `zoo.json`: layouts, architectures, arguments, excluded networks."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError, StrictDataclassError
from transformers import PreTrainedConfig

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import MODEL_CLASSES
from hf_sane.core._layout import Layout
from hf_sane.records._documents import Entry, read_document
from hf_sane.records._errors import reading
from hf_sane.records._files import write_atomically
from hf_sane.records._patience import patiently
from hf_sane.records._redaction import hide_folders_in
from hf_sane.records._sources import HubRepo, find_source

FILE_NAME = "zoo.json"
CONFIG_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
# Names that Windows does not allow for folders, with any suffix.
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}
TAKEN = ("data", FILE_NAME)  # the folder of the default configuration, and the file next to it
FORMAT_VERSION = 1
DEFAULT_CONFIG = "default"
LAYOUT_DIGITS = ARCHITECTURE_DIGITS = 16
PER_RUN_SETTINGS = ("activation", "initialization", "dropout")  # columns of the zoo, not part of the architecture
IMPORT_KEY = "repositories"  # in `data` of imported zoos
MIX_KEY = "zoos"  # in `data` of mixtures: name, arguments and data of each zoo
PROPERTIES_KEY = "properties"  # in `data` of imported zoos with properties from tables or names
MAX_ROW_SCALARS = 2**31 - 1  # Arrow's list offsets are int32
STRICT = (StrictDataclassError,)  # errors that configurations raise
IMPORTED = "imported"  # model_type of networks whose code is not part of the library
MODULE_ARGUMENTS = "module_args"  # in the settings of networks built from a user's own module
# Settings in a config.json of Transformers that do not belong to an architecture.
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map", "id2label", "label2id")


@dataclass(frozen=True)
class ZooFacts:
    """Everything about a zoo except its rows.

    Attributes:
        name: Human-readable name of the images and the zoo.
        layouts: Layouts (`Layout.to_dict`) by the first digits of their signature, as in the `layout` column.
        architectures: Configurations (`to_dict`) by the key in the `architecture` column; activation, initialisation
            and dropout of a row are columns of their own. Networks of other families, imported or built from a user's
            module, have the `model_type` "imported", and `config` holds what is known about them.
        arguments: How the zoo was built.
        data: The images: name, counts, pixel statistics. For imported zoos: number of networks and repositories,
            licences, metrics from cards, SHA-256 of all weights. For mixtures: the data of each zoo.
        excluded: Runs that were left out (or marked): `run_id`, `epoch`, `reason`.
        splits: For each split, the number of runs and networks and, if measured, the mean final test accuracy.
    """

    name: str
    layouts: Mapping[str, Mapping[str, Any]]
    architectures: Mapping[str, Mapping[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    excluded: tuple[Mapping[str, Any], ...] = ()
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def parsed_layouts(self) -> dict[str, Layout]:
        """Layouts, with templates of zeros."""
        return {key: Layout.from_dict(structure) for key, structure in self.layouts.items()}

    @cached_property
    def parsed_architectures(self) -> dict[str, ZooConfig | None]:
        """Configurations; `None` for imported networks of other families."""
        return {
            key: None if settings.get("model_type") == IMPORTED else config_from_dict(settings)
            for key, settings in self.architectures.items()
        }

    def labels(self, num_classes: int) -> dict[str, Any]:
        """Class names as settings of a configuration, if they are known."""
        names = self.data.get("classes")
        if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(n, str) for n in names):
            return {}
        return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}

    @property
    def digest(self) -> str:
        """Digest of the zoo's content (16 hexadecimal digits), without arguments, which may differ without effect."""
        content = {name: value for name, value in self.to_dict().items() if name != "arguments"}
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:LAYOUT_DIGITS]

    @property
    def training_recipe(self) -> dict[str, Any]:
        """Optimizer, learning rate and weight decay of the zoo's networks, for comparable fine-tuning.

        The result holds arguments of `HyperParameters.repeat`. If there are several optimizers, it names the first; if
        there are bounds, the lower bound.

        Raises:
            ValueError: If the zoo was imported or mixed from others, and thus has no single recipe.
        """
        if "optimizers" not in self.arguments:
            raise ValueError(
                f"the zoo {self.name!r} does not record how its networks were trained, as is usual for imported and "
                f"mixed "
                "zoos; use one made by build_zoo(), or pass optimizer, learning_rate and weight_decay"
            )
        optimizer = self.arguments["optimizers"][0]
        factor = self.arguments.get("sgd_factor", 1.0) if optimizer == "sgd" else 1.0
        return {
            "optimizer": optimizer,
            "learning_rate": factor * self.arguments["learning_rate"][0],
            "weight_decay": self.arguments["weight_decay"][0],
        }

    def without_folders(self) -> "ZooFacts":
        """The facts for publication, without local paths of sources."""
        return replace(self, arguments=hide_folders_in(self.arguments), data=hide_folders_in(self.data))

    def count(self, split: str) -> int | None:
        """Number of networks in a split, if known."""
        return int(self.splits[split]["networks"]) if split in self.splits else None

    def to_dict(self) -> dict[str, Any]:
        """The facts in a form that JSON supports."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**values, "excluded": list(self.excluded)}


def facts_json(known: Mapping[str, ZooFacts]) -> str:
    """Content of `zoo.json`: the facts of every configuration in a folder, by name."""
    content = {name: facts.to_dict() for name, facts in known.items()}
    return json.dumps({"format_version": FORMAT_VERSION, "configs": content}, indent=1) + "\n"


def save_facts(folder: Path, config: str, facts: ZooFacts) -> dict[str, Any]:
    """Add facts to `zoo.json`; sections of other configurations remain unchanged, character by character.

    Returns:
        The section as it will be read.
    """
    known = read_sections(folder) if (folder / FILE_NAME).exists() else {}
    section = json.loads(json.dumps(facts.to_dict()))
    if known.get(config) != section:
        content = {"format_version": FORMAT_VERSION, "configs": {**known, config: section}}
        with write_atomically(folder / FILE_NAME) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return section


def section_digest(section: Mapping[str, Any]) -> str:
    """SHA-256 of one configuration's section of `zoo.json`, regardless of key order and whitespace."""
    return sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()


def find_facts(source: str | Path, revision: str | None) -> tuple[Path | HubRepo, Path]:
    """Source of a zoo, and the folder with its `zoo.json`; for a repository, the folder of the commit in the cache.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it holds no zoo.
    """
    repo = find_source(source, revision=revision, repo_type="dataset")
    if isinstance(repo, Path):
        return repo, repo
    try:
        found = patiently(hf_hub_download, repo.repo_id, FILE_NAME, repo_type="dataset", revision=repo.revision)
        return repo, Path(found).parent
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} is not a zoo: expected {FILE_NAME} in it; push one with hf-sane push zoo"
        ) from error


def read_facts(folder: Path) -> dict[str, ZooFacts]:
    """Facts of every configuration in a zoo folder.

    Raises:
        FileNotFoundError: If the folder holds no zoo.
        InvalidFileError: If the file is damaged or inconsistent, or was written by a newer version of the library.
    """
    return {name: _read_facts(name, entry) for name, entry in _read_document(folder).items()}


def read_sections(folder: Path) -> dict[str, dict[str, Any]]:
    """The unparsed section of every configuration in a folder's `zoo.json`; see [`read_facts`]."""
    return {name: entry.mapping() for name, entry in _read_document(folder).items()}


def _read_document(folder: Path) -> Entry:
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a zoo: expected {FILE_NAME} in it; build one with build_zoo(), or import networks with "
            "import_zoo() (hf-sane zoo import)"
        )
    document = read_document(
        path, expected="the facts of a zoo", remedy="build the zoo again, or load it from another source"
    )
    version = document["format_version"]
    if version.value != FORMAT_VERSION:
        version.fail(f"format version {FORMAT_VERSION}", remedy="update hf_sane")
    return document["configs"]


def _read_facts(name: str, entry: Entry) -> ZooFacts:
    if not name or name in (".", "..") or any(letter in "/\\" or not letter.isprintable() for letter in name):
        entry.fail("a name that is valid for a folder", got=name)
    for key, structure in entry["layouts"].items():
        layout = Layout.from_entry(structure)
        if (found := layout_key(layout)) != key:
            structure.fail(f"the layout whose signature begins with {key}", got=f"one with {found}, so it was changed")
        if (scalars := layout.num_tokens * layout.token_dim) > MAX_ROW_SCALARS:
            structure.fail(f"at most {MAX_ROW_SCALARS:,} scalars as tokens", got=f"{scalars:,}")
    for key, settings in entry["architectures"].items():
        if (found := architecture_key(settings.mapping())) != key:
            settings.fail(f"the settings with the digest in {key}", got=f"those of {found}, so they were changed")
        if settings["model_type"].text() != IMPORTED:
            with reading(
                entry.file,
                field=settings.field,
                expected="the configuration of a network",
                remedy=entry.remedy,
                also=STRICT,
            ):
                config_from_dict(settings.mapping())
    for split in entry["splits"].mapping():
        entry["splits"][split]["networks"].whole()
    return ZooFacts(**entry.fields_of(ZooFacts))


def check_config_name(config: str) -> None:
    """Reject names that are not portable, since each becomes a folder and a configuration name on the Hub.

    Raises:
        ValueError: If the name is not allowed.
    """
    is_device = config.partition(".")[0].upper() in DEVICES
    if not CONFIG_NAME.fullmatch(config) or config.endswith(".") or is_device or config in TAKEN:
        raise ValueError(
            "expected a name for the zoo (config) of up to 100 letters a-z, digits, '_', '-' and '.', which starts "
            f"with a letter, a digit or '_' and is not a reserved name such as 'con', 'nul' or 'data', got {config!r}"
        )


def data_folder(folder: Path, config: str) -> Path:
    """Folder with the parquet files and the alignment of a configuration."""
    return folder / ("data" if config == DEFAULT_CONFIG else config)


def layout_key(layout: Layout) -> str:
    """Value of the `layout` column."""
    return layout.signature[:LAYOUT_DIGITS]


def architecture_facts(config: ZooConfig) -> tuple[str, dict[str, Any]]:
    """Value of the `architecture` column, and the settings that it refers to."""
    own = {entry.name for entry in fields(config)} - {entry.name for entry in fields(PreTrainedConfig)}
    settings = {name: getattr(config, name) for name in sorted(own) if name not in PER_RUN_SETTINGS}
    labels = dict(config.id2label or {})
    named = any(name != f"LABEL_{index}" for index, name in labels.items())
    settings |= {"id2label": labels} if named else {"num_labels": len(labels)}
    known = json.loads(json.dumps({"model_type": config.model_type, **settings}, sort_keys=True))
    return architecture_key(known), known


def foreign_facts(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Like [`architecture_facts`], for an architecture of another library, from its settings."""
    known = {key: config[key] for key in sorted(config) if key not in VOLATILE}
    if isinstance(config.get("id2label"), dict):  # only the labels give the number of classes
        known["num_labels"] = len(config["id2label"])
    settings = json.loads(json.dumps({"model_type": IMPORTED, "config": known}))
    return architecture_key(settings), settings


def architecture_key(settings: Mapping[str, Any]) -> str:
    """Key of an architecture with these settings (including `model_type`), which contains their digest."""
    digest = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{settings.get('model_type')}-{digest[:ARCHITECTURE_DIGITS]}"


def config_classes() -> dict[str, type[ZooConfig]]:
    """Configuration classes of the architectures that zoos are built from, by `model_type`."""
    return {config_class.model_type: config_class for config_class in MODEL_CLASSES}


def config_from_dict(settings: Mapping[str, Any]) -> ZooConfig:
    """Create a configuration from its settings.

    Raises:
        ValueError: If `model_type` is none of the zoo architectures.
    """
    model_type = settings.get("model_type")
    known = config_classes()
    if model_type not in known:
        raise ValueError(f"expected model_type to be one of {sorted(known)}, got {model_type!r}")
    values = {key: value for key, value in settings.items() if key != "model_type"}
    if "id2label" in values:
        values["id2label"] = {int(index): name for index, name in values["id2label"].items()}
        values["label2id"] = {name: index for index, name in values["id2label"].items()}
    return known[model_type](**values)
