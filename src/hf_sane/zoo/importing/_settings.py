"""Settings of an import."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hf_sane.core._token_layouts import find_token_layout
from hf_sane.core._token_settings import TokenSettings
from hf_sane.records._settings import as_arguments, check_numbers, setting
from hf_sane.zoo.importing._network_names import read_pattern
from hf_sane.zoo.importing._trees import is_tree

Grouping = Literal["repository", "base_model", "author", "network"]
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
TOKEN_SETTINGS = ("token_dim", "token_layout", "batch_norm")


@strict
@dataclass(kw_only=True)
class ImportSettings(TokenSettings):
    """Settings of an import: networks on the Hub or in a folder, and how they are stored.

    Raises:
        TypeError: If a field is unknown, or a value has the wrong type.
        ValueError: If a value is not among the choices.
        StrictDataclassClassValidationError: If a value is out of range, or no source is given.
    """

    repos: list[str] = setting(
        "Model repositories on the Hub (owner/name or owner/name@revision), or one folder (like --folder).",
        factory=list,
        positional=True,
        formerly="--repos",
    )
    author: str | None = setting("Import the models of this user or organisation on the Hub.", default=None)
    filter: list[str] = setting(
        "Import models on the Hub that have all of these tags, such as image-classification.", factory=list
    )
    search: str | None = setting("Import models on the Hub whose names contain this text.", default=None)
    limit: int = setting(
        "Import at most this many models from --author, --filter and --search, most downloaded first.",
        default=100,
    )
    folder: str | Path | None = setting(
        "Import the networks below this folder, or in a tar or zip archive: model folders (with model.safetensors "
        "or its index), and every other checkpoint file on its own. File formats are detected by the first bytes. "
        "Logs next to the checkpoints become properties: params.json and result.json of Ray Tune; metrics.csv, "
        "hparams.yaml and event files of Lightning and TensorBoard; trainer_state.json of Transformers.",
        default=None,
    )
    files: list[str] = setting(
        "Pattern of the files to import from each repository, such as '*/model.safetensors'. By default the "
        "weights at its root, or otherwise every safetensors file. Repeat the option for several.",
        factory=list,
        split=False,
    )
    allow_pickle: bool = setting(
        "Read files of torch.save (with weights_only) if there is no safetensors file.", default=False
    )
    subfolder: str | None = setting(
        "Subfolder with the weights in each repository; with --folder, every subfolder of this name.", default=None
    )
    variant: str | None = setting("Variant of the weights, such as fp16 for model.fp16.safetensors.", default=None)
    key: str | None = setting("Name of the state dict in a training checkpoint, such as model_ema.", default=None)
    max_size: int | str = setting(
        "Largest file size of a network, such as 500MB; larger networks are not downloaded.",
        default="500MB",
    )
    max_tokens: int | None = setting(
        "Maximum length of a network in tokens; of longer networks, only the header is downloaded.", default=None
    )
    token_dim: int = setting("Scalars per token.", default=289)
    properties: list[str | Path] = setting(
        "Table of properties of the networks (accuracies, hyper-parameters or others): CSV, JSON, JSON lines, "
        "parquet, an export of Weights & Biases or TensorBoard, an event file, or a folder of such files. Rows are "
        "matched by path, file name or stem, or by run and epoch. Repeat the option for several.",
        factory=list,
        split=False,
    )
    properties_key: str | None = setting(
        "Column of the table that names the network or its run; by default the column that matches most networks.",
        default=None,
    )
    pattern: str | None = setting(
        "Pattern of paths, such as '{run}/epoch_{epoch:d}.pt': fields become columns, and {run} keeps a training "
        "run in one split. Types are d (whole number), g (number) and s (text); * is anything within a folder.",
        default=None,
    )
    group_by: Grouping = setting(
        "Networks that are kept in the same split. 'repository': those of one repository, or of one training run "
        "if the properties or the pattern name it; in a folder without such names, the files of each subfolder, "
        "and neighbouring model folders with names such as checkpoint-500 and best, which may belong to one run. "
        "'base_model': those of all repositories with a common base model. 'author': those of one author, or of "
        "one first subfolder. 'network': each network on its own, for independent runs.",
        default="repository",
    )
    split_shares: list[float | int] = setting(
        "Shares of the groups in the train, validation and test splits.", factory=lambda: [0.7, 0.15, 0.15]
    )
    seed: int = setting("Random seed for the splits.", default=0)
    name: str | None = setting("Title of the zoo's card.", default=None)

    def __post_init__(self) -> None:
        self.max_size = parse_size(self.max_size)
        if self.folder is None and len(self.repos) == 1 and is_tree(Path(self.repos[0])):
            self.folder, self.repos = self.repos[0], []
        self.folder = None if self.folder is None else str(self.folder)
        self.properties = [str(path) for path in self.properties]
        if self.pattern is not None:
            read_pattern(self.pattern)

    def validate_sources(self) -> None:
        """Check that a source is given."""
        if not (self.repos or self.lists_models or self.folder):
            raise ValueError(
                "nothing to import: name repositories (repos), an author, filter or search on the Hub, or a folder"
            )
        if self.files and (self.subfolder or self.variant):
            raise ValueError(
                f"expected either files or subfolder and variant, got both: use a pattern of files such as "
                f"'{self.subfolder or '*'}/model{f'.{self.variant}' if self.variant else ''}.safetensors' (--files)"
            )
        if self.folder is not None and not is_tree(Path(self.folder)):
            raise ValueError(f"folder must be an existing folder, or a tar or zip archive, got {self.folder!r}")

    def validate_ranges(self) -> None:
        """Check that counts and shares are in range."""
        for name in ("limit", "max_size", "token_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        find_token_layout(self.token_layout)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}; leave it out for no limit")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        shares = self.split_shares
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"split_shares must be three shares that add up to 1, got {shares}")
        check_numbers(self)

    @property
    def lists_models(self) -> bool:
        """Whether to search for models on the Hub."""
        return bool(self.author or self.filter or self.search)

    @property
    def max_bytes(self) -> int:
        """`max_size` in bytes."""
        return int(self.max_size)

    @property
    def token_settings(self) -> dict[str, Any]:
        """Settings of the tokens, as keyword arguments."""
        return {name: getattr(self, name) for name in TOKEN_SETTINGS}

    def to_dict(self) -> dict[str, Any]:
        """All fields of this class in a form that JSON supports, with only the folder's name for privacy."""
        found = as_arguments(self, ImportSettings)
        found["max_bytes"] = found.pop("max_size")
        for name in ("properties", "properties_key", "pattern"):  # left out if unset, as in zoos of earlier versions
            if not found[name]:
                del found[name]
        if self.properties:
            found["properties"] = [Path(path).name for path in self.properties]
        return found | {"folder": self.folder and Path(self.folder).resolve().name}


def parse_size(size: int | str) -> int:
    """Parse a size in bytes: `500MB`, `1.5 GiB`, `1000`.

    Raises:
        ValueError: If the text is not a size.
    """
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", size, re.IGNORECASE)
    if found is None or (found[2] or "B").upper() not in UNITS:
        raise ValueError(f"expected a size such as 500MB or 1.5GiB, got {size!r}; units are {', '.join(UNITS)}")
    return int(float(found[1]) * UNITS[(found[2] or "B").upper()])
