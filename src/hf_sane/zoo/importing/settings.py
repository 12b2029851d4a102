"""What to import, and under which conditions."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hf_sane.core.layout import BatchNormStorage

Grouping = Literal["repository", "base_model", "author", "network"]
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
TOKEN_SETTINGS = ("token_dim", "token_layout", "batch_norm")


@strict
@dataclass(kw_only=True)
class ImportSettings:
    """Which networks make a zoo, from the Hub or a folder.

    Attributes:
        repos: Model repositories on the Hub, each `owner/name` or `owner/name@revision`.
        author: Take the models of this user or organisation.
        filter: Take models that carry all of these tags, such as `image-classification`.
        search: Take models with these letters in their name.
        limit: Most models that `author`, `filter` and `search` together may add; the most downloaded come first.
        folder: Take the networks below this folder: those of model folders (with a `model.safetensors` or its index), and
            all other checkpoint files, each on its own; what a file is, its first bytes say.
        files: Patterns (`*.safetensors`) of the files to take of each repository. Without any: the weights at its root
            (`model.safetensors` and its kin, or their index), or else every safetensors file.
        allow_pickle: Whether to open files of `torch.save`, with `weights_only`, where there is no safetensors.
        key: Which state dict of training checkpoints that hold several, such as `"model_ema"`.
        max_bytes: Largest network, in bytes on disk. What is larger is not downloaded.
        max_tokens: Longest network in tokens; of those that are longer, only the header is downloaded.
        token_dim: Scalars per token.
        token_layout: See `Layout`.
        batch_norm: See `Layout`.
        group_by: What must not be in two splits at once: a repository (in a folder: the files of one folder, and
            model folders beside each other with names such as `checkpoint-500` and `best`, which may be of one run), a family (repositories connected by
            `base_model`), an author (in a folder: its first sub-folder), or only a network: for files of independent runs.
        split_shares: Shares of the groups that train, validation and test get.
        seed: Of the split.
        name: What cards call the zoo.

    Raises:
        TypeError: For an unknown field.
        StrictDataclassFieldValidationError: For a value of the wrong type or an unknown choice.
        StrictDataclassClassValidationError: For a value out of range, or nothing to import from.
    """

    repos: list[str] = field(default_factory=list)
    author: str | None = None
    filter: list[str] = field(default_factory=list)
    search: str | None = None
    limit: int = 100
    folder: str | None = None
    files: list[str] = field(default_factory=list)
    allow_pickle: bool = False
    key: str | None = None
    max_bytes: int = 500 * 10**6
    max_tokens: int | None = None
    token_dim: int = 289
    token_layout: str = "rowwise"
    batch_norm: BatchNormStorage = "tokens"
    group_by: Grouping = "repository"
    split_shares: list[float | int] = field(default_factory=lambda: [0.7, 0.15, 0.15])
    seed: int = 0
    name: str | None = None

    def validate_sources(self) -> None:
        """There is something to import from."""
        if not (self.repos or self.lists_models or self.folder):
            raise ValueError(
                "nothing to import from: name repositories (repos), an author, filter or search on the Hub, or a folder"
            )
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(f"folder must be an existing folder, got {self.folder!r}")

    def validate_ranges(self) -> None:
        """Counts and shares lie where they have a meaning."""
        for name in ("limit", "max_bytes", "token_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}; leave it out for no limit")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        shares = self.split_shares
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"split_shares must be three shares that add up to 1, got {shares}")

    @property
    def lists_models(self) -> bool:
        """Whether models are looked for on the Hub."""
        return bool(self.author or self.filter or self.search)

    @property
    def token_settings(self) -> dict[str, Any]:
        """How networks become tokens."""
        return {name: getattr(self, name) for name in TOKEN_SETTINGS}

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them; of the folder its name only, since zoos are published."""
        return asdict(self) | {"folder": self.folder and Path(self.folder).resolve().name}


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `500MB`, `1.5 GiB`, `1000`.

    Raises:
        ValueError: If it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if found is None or (found[2] or "B").upper() not in UNITS:
        raise ValueError(f"expected a size such as 500MB or 1.5GiB, got {text!r}; units are {', '.join(UNITS)}")
    return int(float(found[1]) * UNITS[(found[2] or "B").upper()])
