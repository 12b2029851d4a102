"""Fit an implicit network to each of many images, and write them as a zoo; an interrupted fit can be continued."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Features, Value
from huggingface_hub.dataclasses import strict
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.networks._fields import (
    field_images,
    fit_fields,
    peak_signal_to_noise,
    pixel_positions,
    siren_architecture,
    starting_fields,
)
from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._image_sources import IMAGE_KINDS, SPLITS
from hf_sane.networks._images import ImageData, load_images
from hf_sane.records._documents import read_document
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._files import write_atomically
from hf_sane.records._progress import progress
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import ProgressSettings, SeedSettings, as_arguments, setting
from hf_sane.tokenization._safetensors_header import read_header
from hf_sane.zoo._dataset import Zoo, open_data
from hf_sane.zoo._facts import DEFAULT_CONFIG, MODULE_ARGUMENTS, ZooFacts, foreign_facts, layout_key, read_facts
from hf_sane.zoo._records import FEATURES, ModelRecord, batched, write_parquet
from hf_sane.zoo._writing import RECORD_NAME, is_finished, tidy, work_folder, writing_zoo

SETTINGS_NAME = "fit.json"  # of an unfinished zoo
MAY_DIFFER = ("progress_bar", "group_size", "images")  # images are identified by their digest
# Columns in addition to those of `FEATURES`: place of the image in its split, its class, quality of the fit.
FIELD_FEATURES = Features({**FEATURES, "image": Value("int64"), "label": Value("int64"), "psnr": Value("float32")})


@strict
@dataclass(kw_only=True)
class FieldSettings(ImageSettings, SeedSettings, ProgressSettings):
    """Settings of a zoo of implicit networks (SIREN), each of which is fitted to one image.

    Raises:
        TypeError: If a field is unknown, or a value has the wrong type.
        StrictDataclassClassValidationError: If a value is out of range.
    """

    name: str | None = setting("Title of the zoo's card; by default the name of the dataset.", default=None)
    images: str = setting(f"Images to fit: {IMAGE_KINDS}.", default="digits")
    train_limit: int | None = setting("Fit at most this many training images.", default=None, least=1)
    validation_limit: int | None = setting("Fit at most this many validation images.", default=None, least=1)
    test_limit: int | None = setting("Fit at most this many test images.", default=None, least=1)
    hidden_sizes: list[int] = setting("Widths of the hidden layers.", factory=lambda: [32, 32], least=1)
    frequency: float = setting("Frequency factor inside the sines.", default=30.0)
    independent: bool = setting(
        "Initialise each network with different weights; by default all start from the same weights, so that they "
        "need no alignment.",
        default=False,
    )
    steps: int = setting("Number of training steps of each network.", default=200)
    batch_pixels: int | None = setting("Number of pixels per step; by default all.", default=None, least=1)
    learning_rate: float = setting("Initial learning rate of Adam.", default=2e-3)
    group_size: int = setting(
        "Number of networks to fit before saving them; an interrupted run continues with the next group.",
        default=512,
        least=1,
    )
    license: str | None = setting("Licence of the zoo, for its card.", default=None)

    def validate_numbers(self) -> None:
        """Check that numbers are in range."""
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes is empty: name at least one width")
        for name in ("learning_rate", "frequency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """All fields of this class in a form that JSON supports."""
        return as_arguments(self, FieldSettings)


def fit_zoo(
    arguments: FieldSettings,
    data: ImageData | None,
    output: str | Path,
    *,
    config: str = DEFAULT_CONFIG,
    describe: Any = None,
) -> Zoo:
    """Fit a network to each image and write them to a folder, in the splits of their images.

    Args:
        arguments: All settings.
        data: Images; if `None`, loaded according to the settings.
        output: Folder of the zoo; it may already hold zoos under other names.
        config: Name of this zoo in the folder.
        describe: Called with the folder of the files and the zoo, before it is finished, to add a report.

    Returns:
        The zoo, as loaded by `Zoo.load(output, config)`. It is not aligned.

    Raises:
        ValueError: If the folder holds networks with other settings.
        FileExistsError: If the folder holds something else.
        FolderInUseError: If another process is writing to the folder.
    """
    output = Path(output)
    if data is None:
        limits = {f"{split}_limit": getattr(arguments, f"{split}_limit") for split in SPLITS}
        data = load_images(arguments.images, **arguments.image_shape, **limits)
    if is_finished(output, config):
        tidy(output, config)
        facts = read_facts(output)[config]
        _Fit(arguments, data, work_folder(output, config)).compare({**facts.arguments, "data": facts.data}, output)
        return Zoo.load(output, config)
    with writing_zoo(output, config) as writer:
        fit = _Fit(arguments, data, writer.work)
        record = RunRecord.start(seed=arguments.seed, arguments=arguments.to_dict(), data=fit.examples)
        fit.check_continues(output)
        stage = writer.begin()
        fit.claim()
        fit.train()
        facts = fit.write_rows(stage)
        zoo = open_data(stage, facts, writer.cache)
        record = record.finish({"splits": facts.splits})
        record.save(stage / RECORD_NAME)
        if describe is not None:
            describe(stage, zoo)
        writer.publish(facts)
    return Zoo.load(output, config)


class _Fit:
    """One zoo in the making: its images, architecture and groups."""

    def __init__(self, arguments: FieldSettings, data: ImageData, work: Path) -> None:
        self.arguments, self.work = arguments, work
        mean, std = (torch.tensor(moment).view(1, -1, 1, 1) for moment in (data.mean, data.std))
        self.values, self.labels = {}, {}
        digest = sha256()
        for split in SPLITS:
            images, self.labels[split] = data.split(split)
            raw = ((images.cpu() * std + mean) / data.white).clamp(0, 1)
            self.values[split] = raw.flatten(2).transpose(1, 2).contiguous().float()  # [n, pixels, channels]
            for tensor in (images, self.labels[split]):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        height, width = data.train_images.shape[2:]
        self.positions = pixel_positions(height, width)
        facts = {name: value for name, value in data.describe().items() if name not in ("image_size", "white")}
        self.examples = json.loads(
            json.dumps({**facts, "num_classes": data.num_classes, "sha256": digest.hexdigest()})
        )
        self.title = arguments.name or f"{data.name}, implicit networks"
        settings = {"hidden_sizes": list(arguments.hidden_sizes), "frequency": float(arguments.frequency)}
        self.architecture = siren_architecture({**settings, "num_channels": data.num_channels})
        state = self.architecture.structure.state_dict()
        dim = max(layer.row_length for layer in Layout.from_state_dict(state, token_dim=1).layers)
        self.layout = Layout.from_state_dict(state, token_dim=dim)
        self.groups = [
            (split, start, min(start + arguments.group_size, len(self.labels[split])))
            for split in SPLITS
            for start in range(0, len(self.labels[split]), arguments.group_size)
        ]

    def settings(self) -> dict[str, Any]:
        """Settings that must be the same to continue."""
        return json.loads(json.dumps({**self.arguments.to_dict(), "data": self.examples}))

    def compare(self, known: dict[str, Any], folder: Path) -> None:
        """Raise an error if networks in the folder were fitted with other settings."""
        mine, known = (_identity(settings) for settings in (self.settings(), known))
        if changed := sorted(key for key in mine.keys() | known.keys() if mine.get(key) != known.get(key)):
            raise ValueError(
                f"{folder} holds a zoo with other settings of {', '.join(changed)}: expected "
                f"{[known.get(key) for key in changed]}, got {[mine.get(key) for key in changed]}; use those, another "
                "folder, or another name (--zoo-config)"
            )

    def check_continues(self, folder: Path) -> None:
        """Raise an error if the unfinished zoo was begun with other settings."""
        if (path := self.work / SETTINGS_NAME).exists():
            remedy = f"remove {self.work} to start again"
            self.compare(dict(read_document(path, expected="the settings of a fit", remedy=remedy).mapping()), folder)

    def claim(self) -> None:
        """Store the settings in the work folder."""
        with write_atomically(self.work / SETTINGS_NAME) as partial:
            partial.write_text(json.dumps(self.settings(), indent=1), encoding="utf-8")

    def path(self, group: tuple[str, int, int]) -> Path:
        """File of a finished group, whose name has its images, so that groups may have another size next time."""
        split, start, end = group
        return self.work / f"{split}-{start:07d}-{end:07d}.safetensors"

    def train(self) -> None:
        """Fit the groups that are not yet on disk."""
        total = sum(map(len, self.labels.values()))
        with progress(total=total, desc=self.title, unit="network", wanted=self.arguments.progress_bar) as bar:
            for group in self.groups:
                if not self._is_fitted(group):
                    self._fit(group)
                bar.update(group[2] - group[1])

    def _is_fitted(self, group: tuple[str, int, int]) -> bool:
        """Whether a group is complete on disk; a damaged group is fitted again."""
        try:
            found = read_header(self.path(group))
        except (FileNotFoundError, InvalidFileError):
            return False
        return "tokens" in found and found["tokens"].shape[0] == group[2] - group[1]

    def _fit(self, group: tuple[str, int, int]) -> None:
        split, start, end = group
        options, values = self.arguments, self.values[split][start:end]
        seeds = [self._seed(split, index) for index in range(start, end)] if options.independent else [options.seed]
        begin = starting_fields(self.architecture.make, seeds)
        tensors = fit_fields(
            {name: tensor.expand(len(values), *tensor.shape[1:]) for name, tensor in begin.items()},
            self.positions,
            values,
            steps=options.steps,
            learning_rate=options.learning_rate,
            batch_pixels=options.batch_pixels,
            frequency=options.frequency,
            seed=options.seed,
        )
        found = field_images(tensors, self.positions, frequency=options.frequency)
        psnr = peak_signal_to_noise(found, values)
        with write_atomically(self.path(group)) as partial:
            save_file({"tokens": self.layout.tokens(tensors, batch_dims=1).contiguous(), "psnr": psnr}, partial)

    def _seed(self, split: str, index: int) -> int:
        """Seed of the initialisation of the network of an image."""
        if not self.arguments.independent:
            return self.arguments.seed
        return int(np.random.default_rng([self.arguments.seed, SPLITS.index(split), index]).integers(2**31))

    def write_rows(self, folder: Path) -> ZooFacts:
        """Write the finished groups as parquet files."""
        own = {"architectures": [self.architecture.name], MODULE_ARGUMENTS: dict(self.architecture.arguments)}
        architecture, settings = foreign_facts(own)
        shared = {
            "architecture": architecture,
            "layout": layout_key(self.layout),
            "epoch": self.arguments.steps,
            "optimizer": "adam",
            "learning_rate": self.arguments.learning_rate,
            "weight_decay": 0.0,
            "activation": "sine",
            "initialization": "siren",
        }
        splits: dict[str, dict[str, Any]] = {}
        excluded = []
        for split in SPLITS:
            fits: list[float] = []

            def records(split: str = split, fits: list[float] = fits) -> Iterator[ModelRecord]:
                for index, tokens, psnr in self._fitted(split):
                    run_id = f"{split}-{index:06d}"
                    if not bool(tokens.isfinite().all()):
                        excluded.append({"run_id": run_id, "epoch": self.arguments.steps, "reason": "not finite"})
                        continue
                    fits.append(psnr)
                    own = {"run_id": run_id, "image": index, "label": int(self.labels[split][index]), "psnr": psnr}
                    yield ModelRecord(tokens, {}, {**shared, **own, "seed": self._seed(split, index)})

            write_parquet(batched(records(), FIELD_FEATURES), folder, split)
            splits[split] = {"runs": len(fits), "networks": len(fits)}
            if fits:
                splits[split]["psnr"] = float(np.mean(fits))
        return ZooFacts(
            name=self.title,
            layouts={layout_key(self.layout): self.layout.to_dict()},
            architectures={architecture: settings},
            arguments=self.arguments.to_dict(),
            data=self.examples,
            excluded=tuple(excluded),
            splits=splits,
        )

    def _fitted(self, split: str) -> Iterator[tuple[int, Tensor, float]]:
        """Position, tokens and quality of every image of a split."""
        for group in self.groups:
            if group[0] == split:
                stored = load_file(self.path(group))
                for row, psnr in enumerate(stored["psnr"].tolist()):
                    yield group[1] + row, stored["tokens"][row], psnr


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that may differ, and without statistics of pixels, which the digest covers."""
    data = {key: value for key, value in settings.get("data", {}).items() if key not in ("mean", "std", "classes")}
    return {key: value for key, value in settings.items() if key not in MAY_DIFFER} | {"data": data}
