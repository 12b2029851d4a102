"""What to import, and under which conditions."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hf_sane.core.layout import BatchNormStorage
from hf_sane.records.settings import setting

Grouping = Literal["repository", "base_model", "author", "network"]
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
TOKEN_SETTINGS = ("token_dim", "token_layout", "batch_norm")


@strict
@dataclass(kw_only=True)
class ImportSettings:
    """Which networks make a zoo, from the Hub or a folder.

    The text beside each field is its documentation and its `--help`.

    Raises:
        TypeError: For an unknown field.
        StrictDataclassFieldValidationError: For a value of the wrong type or an unknown choice.
        StrictDataclassClassValidationError: For a value out of range, or nothing to import from.
    """

    repos: list[str] = setting(
        "Model repositories on the Hub: owner/name or owner/name@revision.", factory=list, split=False
    )
    author: str | None = setting("Import the models of this user or organisation.", default=None)
    filter: list[str] = setting(
        "Import models that carry this tag, such as image-classification; repeat it for several tags.", factory=list
    )
    search: str | None = setting("Import models with these letters in their name.", default=None)
    limit: int = setting(
        "Most models that --author, --filter and --search add together, most downloaded first.", default=100
    )
    folder: str | None = setting(
        "Import the networks below this folder: model folders, and every other checkpoint file on its own.",
        default=None,
    )
    files: list[str] = setting(
        "Pattern of the files to take of each repository, such as '*/model.safetensors'; by default the weights at its root, "
        "or else every safetensors file.",
        factory=list,
        split=False,
    )
    allow_pickle: bool = setting(
        "Open files of torch.save (weights_only) where there is no safetensors.", default=False
    )
    key: str | None = setting("Which state dict of a training checkpoint, such as model_ema.", default=None)
    max_bytes: int = setting(
        "Largest network in bytes; larger ones are not downloaded.", default=500 * 10**6, only_python=True
    )
    max_tokens: int | None = setting(
        "Longest network in tokens; of longer ones only the header is read.", default=None
    )
    token_dim: int = setting("Scalars per token.", default=289)
    token_layout: str = setting("How weights are cut into tokens: rowwise or dense.", default="rowwise")
    batch_norm: BatchNormStorage = setting(
        "Whether BatchNorm tensors become tokens or are stored beside them.", default="tokens"
    )
    group_by: Grouping = setting(
        "What must not be in two splits at once: a repository (in a folder: the files of one folder, and model folders beside "
        "each other such as checkpoint-500 and best), a family (repositories connected by base_model), an author (in a folder: "
        "its first sub-folder), or only a network.",
        default="repository",
    )
    split_shares: list[float | int] = setting(
        "Shares of the groups for train, validation and test.", factory=lambda: [0.7, 0.15, 0.15]
    )
    seed: int = setting("Random seed of the split.", default=0)
    name: str | None = setting("Name of the zoo on its card.", default=None)

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
