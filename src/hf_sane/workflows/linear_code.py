"""Fit a linear code to zoos: principal components of weight tokens, as a baseline for every SANE."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypedDict

import torch

from hf_sane.models.modeling_linear import LinearCode
from hf_sane.networks._modules import ModuleSettings
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, as_list, setting
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import r2_from_sums, reconstruct_tokens, reconstruction_sums
from hf_sane.training._preparation import fit_code, split_blocks
from hf_sane.workflows.results import Result, Table, rows_of
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.shared import SaneSettings
from hf_sane.workflows.show_zoo import open_zoos
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._settings import ZooSourceSettings


@dataclass(kw_only=True)
class LinearCodeSettings(SaneSettings, ZooSourceSettings, ModuleSettings):
    """Settings of [`fit_linear`]."""

    zoo: list[str | Path | Zoo] = setting(
        "Zoos to fit the code to (folders, Hub repo ids or FOLDER:CONFIG). Repeat the option for several.", split=False
    )
    output: Path | None = setting(
        "New folder for the code, which can be used wherever a SANE is expected.", short="-o"
    )
    sane: str | Path | SANE | None = setting(
        "SANE to compare with, whose weight tokenizer and latent_dim are used.", default=None
    )
    latent_dim: int | None = setting(
        "Number of scalars per latent; by default that of the SANE, or 64.", default=None, least=1
    )
    grouping: Literal["all", "kind", "layer", "position", "network"] = setting(
        "Which tokens share principal components: all, those of one kind of layer, of one layer, or at one position. "
        "With 'network', components of whole networks, which then have one latent instead of one per token.",
        default="kind",
    )


class SplitReconstructionJson(TypedDict):
    """Reconstruction of one split.

    Attributes:
        r2: R2 of decoded weights.
        networks: Number of networks.
    """

    r2: float
    networks: int


class LinearCodeJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        reconstruction_r2: R2 of the weights of test networks.
        reconstruction: R2 by split.
    """

    reconstruction_r2: float
    reconstruction: dict[str, SplitReconstructionJson]


@dataclass(kw_only=True)
class LinearCodeResult(Result):
    """A linear code, which is used like a SANE.

    Attributes:
        sane: The code and its weight tokenizer.
    """

    JSON: ClassVar[Any] = LinearCodeJson

    sane: SANE

    def save(self, folder: str | Path) -> Self:
        """Save the code, which is then used wherever a SANE is expected; see `hf_sane.hub.save_sane` for errors."""
        self.output = self.sane.save_pretrained(folder, title="Linear code of weights")
        return self

    def tables(self) -> list[Table]:
        """R2 of each split."""
        return [Table(("split", "R2", "networks"), rows_of(self.record.results["reconstruction"]))]


def fit_linear(zoo: str | Path | Zoo | Sequence[str | Path | Zoo], **options: Any) -> SANE:
    """Fit a linear code, which embeds, reconstructs and samples networks like a SANE.

    ```python
    linear = hf_sane.fit_linear("org/zoo", sane="org/sane-cnn")
    ```

    Args:
        zoo: A zoo, its folder or its Hub repo id; or a list of these, which must share one token size.
        **options: Other fields of [`LinearCodeSettings`].

    Returns:
        The code; the R2 of each split is in `record.results["reconstruction"]`.

    Raises:
        ValueError: If zoos do not fit each other or the SANE, or layers of one index are of several kinds.
    """
    return run_fit_linear(LinearCodeSettings(**{"zoo": as_list(zoo), "output": None, **options})).sane


def run_fit_linear(settings: LinearCodeSettings) -> LinearCodeResult:
    """Fit principal components to the weight tokens of training networks.

    The code can be used wherever a SANE can (--sane): a SANE has learned only what it achieves beyond this code.
    """
    settings.register()
    record = RunRecord.start(arguments=as_arguments(settings))
    zoos = list(open_zoos(settings.zoo, **settings.zoo_place).values())
    training = [zoo.splits["train"] for zoo in zoos]
    latent_dim, extractor, grouping = settings.latent_dim, None, settings.grouping
    if settings.sane is not None:
        sane = open_sane(settings.sane, **settings.sane_place)
        grouping, as_many = sane.model.linear_rival(settings.grouping)
        latent_dim, extractor = settings.latent_dim or as_many, sane.extractor
    model, extractor = fit_code(training, extractor, latent_dim=latent_dim, grouping=grouping)
    record.arguments |= {"latent_dim": model.config.latent_dim, "grouping": grouping}
    found = {
        name: _reconstruction(model, extractor, [zoo.splits[name] for zoo in zoos if len(zoo.splits.get(name, ()))])
        for name in ("train", "validation", "test")
    }
    record.finish(
        {"reconstruction_r2": found["test"]["r2"], "reconstruction": found},
        data={"zoos": ", ".join(zoo.facts.name for zoo in zoos), "networks": sum(map(len, training))},
    )
    result = LinearCodeResult(record=record, sane=SANE(model, extractor, record=record))
    return result if settings.output is None else result.save(settings.output)


def _reconstruction(
    model: LinearCode, extractor: SANEFeatureExtractor, splits: Sequence[ZooSplit]
) -> dict[str, float]:
    sums = torch.zeros(4, dtype=torch.float64)
    for layout, raw in split_blocks(splits):
        tokens = extractor.normalize(raw, layout)
        sums += reconstruction_sums(tokens, reconstruct_tokens(model, tokens, layout), layout.weight_mask)
    return {"r2": r2_from_sums(sums), "networks": sum(map(len, splits))}


__all__ = ["fit_linear"]
