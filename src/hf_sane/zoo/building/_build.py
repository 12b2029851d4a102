"""Build a zoo: train many networks and store them as tokens with their properties; builds can be continued."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layout import Layout
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._image_sources import SPLITS
from hf_sane.networks._images import ImageData, load_images
from hf_sane.networks._modules import ModuleArchitecture
from hf_sane.networks._stacked import StackedNetworks, empty_model, with_settings
from hf_sane.networks._tasks import LabelledData
from hf_sane.networks._training import Snapshot, StateCallback, train_stacked
from hf_sane.records._cadence import Cadence
from hf_sane.records._documents import read_document
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._files import write_atomically
from hf_sane.records._processes import current_processes
from hf_sane.records._progress import Bar, progress
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._checkpoints import read_safetensors
from hf_sane.tokenization._safetensors_header import read_header
from hf_sane.tokenization._saved_form import renamed_tensors, with_saved_names
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import Zoo, open_data
from hf_sane.zoo._facts import (
    DEFAULT_CONFIG,
    MODULE_ARGUMENTS,
    ZooFacts,
    architecture_facts,
    foreign_facts,
    layout_key,
    read_facts,
)
from hf_sane.zoo._records import CHILD_FEATURES, FEATURES, MEASURES, ModelRecord, batched, write_parquet
from hf_sane.zoo._writing import RECORD_NAME, is_finished, remove_state, tidy, work_folder, writing_zoo
from hf_sane.zoo.building._settings import RunPlan, ZooSettings, plan_runs, split_plans

SETTINGS_NAME = "build.json"  # of an unfinished build
SAVE_SECONDS = 60.0  # seconds between two saves of a group in training
MAY_DIFFER = ("progress_bar",)  # may differ between a build and its continuation


logger = logging.getLogger(__name__)

GROUP_REMEDY = "remove it: the group is trained again"


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Progress of a build after an epoch: networks before this group, networks in it, and its mean accuracy.

    `accuracy` is the group's mean test accuracy at its last stored epoch; NaN before the first.
    """

    finished: int
    group_size: int
    epoch: int
    accuracy: float


def build_zoo(
    arguments: ZooSettings,
    data: LabelledData | None,
    output: str | Path,
    *,
    config: str = DEFAULT_CONFIG,
    on_progress: Callable[[BuildProgress], None] | None = None,
    describe: Callable[[Path, Zoo], object] | None = None,
) -> Zoo:
    """Train the networks of a zoo and write them to a folder.

    Networks are trained in groups. A finished group is written to disk before the next one starts, and a group in
    training is saved about once a minute, between epochs. Processes that share the work (`records._processes`) train
    different groups; only the main process writes the zoo. An interrupted build continues from there, with the same
    result byte by byte. A finished zoo is only loaded.

    Networks that are not finite, or have a parameter beyond `max_abs_weight` at any stored epoch, are left out and
    listed in `zoo.json` with the reason, since one diverged network would dominate the scale of the normalisation (the
    paper's code also has a threshold).

    Args:
        arguments: All settings.
        data: Images, or texts for a module that reads them; if `None`, loaded according to the arguments.
        output: Folder of the zoo; it may already hold zoos under other names.
        config: Name of this zoo in the folder.
        on_progress: Called after every epoch of a group.
        describe: Called with the folder of the files and the zoo, before it is finished, to add a report.

    Returns:
        The zoo, as loaded by `Zoo.load(output, config)`; aligned, unless a user's module cannot be traced.

    Raises:
        ValueError: If the folder holds a build with different arguments or images, the images do not fit the
            architecture, or too few networks are usable.
        FileExistsError: If the folder holds something else.
        FolderInUseError: If another process is writing to the folder.
    """
    output = Path(output)
    processes = current_processes()
    (finished, *_) = processes.gather(is_finished(output, config))  # as the main process sees it
    if finished:
        if processes.is_main:
            tidy(output, config)
        _Build(arguments, data or _load(arguments), work_folder(output, config)).check_finished(output, config)
        return Zoo.load(output, config)
    if not processes.is_main:
        build = _Build(arguments, data or _load(arguments), work_folder(output, config))
        processes.wait()  # until the main process has begun the folder
        build.train(on_progress)
        processes.wait()  # until it has published the zoo
        return Zoo.load(output, config)
    with writing_zoo(output, config) as writer:
        build = _Build(arguments, data or _load(arguments), writer.work)
        record = RunRecord.start(seed=arguments.seed, arguments=arguments.to_dict(), data=build.examples)
        build.check_continues(output, config)
        stage = writer.begin()
        build.claim()
        processes.wait()
        build.train(on_progress)
        facts = build.write_rows(stage)
        zoo = open_data(stage, facts, writer.cache)
        if (alignment := build.align(zoo)) is not None:
            alignment.save(stage)
            zoo = zoo.with_alignment(alignment)
        record.finish({"splits": facts.splits, "excluded": len(facts.excluded)}).save(stage / RECORD_NAME)
        if describe is not None:
            describe(stage, dataclasses.replace(zoo, run_record=record))
        writer.publish(facts)
    processes.wait()
    return Zoo.load(output, config)


def _load(arguments: ZooSettings) -> LabelledData:
    limits = {f"{split}_limit": getattr(arguments, f"{split}_limit") for split in SPLITS}
    return load_images(arguments.images, **arguments.image_shape, **limits)


class _Build:
    """One build: its plan, group files and rows."""

    def __init__(self, arguments: ZooSettings, data: LabelledData, work: Path) -> None:
        self.arguments, self.data, self.work = arguments, data, work
        self.architecture = arguments.network_config(data)
        self.runs = plan_runs(arguments, self.architecture, data.split("train")[1].unique().tolist())
        self.place: dict[str, tuple[int, int]] = {}  # group and position in it of each run
        self.layout = _layout(self.architecture, arguments)
        self.examples = _data_facts(data)
        self.accuracy = math.nan  # of the group in training, at its last stored epoch
        by_kind: dict[tuple[bool, str], list[int]] = {}
        for i, run in enumerate(self.runs):
            by_kind.setdefault((run.ancestor is not None, run.activation or ""), []).append(i)
        size = arguments.group_size
        self.groups = [  # ancestors before their children
            members[start : start + size]
            for _, members in sorted(by_kind.items())
            for start in range(0, len(members), size)
        ]
        for number, members in enumerate(self.groups):
            self.place |= {self.runs[i].run_id: (number, j) for j, i in enumerate(members)}

    def is_trained(self, group: int) -> bool:
        """Whether a group is complete on disk; a damaged group is trained again."""
        try:
            epochs, runs = len(self.kept_epochs(group)), len(self.groups[group])
            check_group(self.group_path(group), self.layout, epochs=epochs, runs=runs)
        except (FileNotFoundError, InvalidFileError):
            return False
        return True

    def kept_epochs(self, group: int) -> list[int]:
        """Stored epochs of a group."""
        return self.arguments.kept_of(children=self.runs[self.groups[group][0]].ancestor is not None)

    def epochs(self, group: int) -> int:
        """Epochs that a group is trained for."""
        run = self.runs[self.groups[group][0]]
        return self.arguments.epochs if run.ancestor is None else self.arguments.child_epochs

    def group_path(self, group: int) -> Path:
        return self.work / f"group-{group:05d}.safetensors"

    def state_path(self, group: int) -> Path:
        """File with the state of a group in training."""
        return self.work / f"state-{group:05d}.safetensors"

    def settings(self) -> dict[str, Any]:
        """Settings that must be the same for a build to continue."""
        arguments = {k: v for k, v in self.arguments.to_dict().items() if k not in MAY_DIFFER}
        return json.loads(json.dumps({**arguments, "data": self.examples, "layout": layout_key(self.layout)}))

    def check_finished(self, folder: Path, config: str) -> None:
        """Raise an error if the finished zoo was built with other settings."""
        facts = read_facts(folder)[config]
        known = {k: v for k, v in facts.arguments.items() if k not in MAY_DIFFER}
        self._compare({**known, "data": facts.data, "layout": next(iter(facts.layouts), None)}, folder, config)

    def check_continues(self, folder: Path, config: str) -> None:
        """Raise an error if the unfinished build was started with other settings."""
        if (path := self.work / SETTINGS_NAME).exists():
            known = read_document(
                path, expected="the settings of a build", remedy=f"remove {self.work} to start again"
            )
            # Earlier versions did not store the layout, which followed from the rest.
            self._compare({"data": {}, "layout": layout_key(self.layout), **known.mapping()}, folder, config)

    def claim(self) -> None:
        """Store the settings in the work folder."""
        with write_atomically(self.work / SETTINGS_NAME) as partial:
            partial.write_text(json.dumps(self.settings(), indent=1), encoding="utf-8")

    def _compare(self, known: Mapping[str, Any], folder: Path, config: str) -> None:
        mine = self.settings()
        mine, known = ({**settings, "data": _identity(settings["data"])} for settings in (mine, known))
        if changed := sorted(k for k in mine.keys() | known.keys() if mine.get(k) != known.get(k)):
            raise ValueError(
                f"{folder} holds a zoo {config!r} with other settings of {', '.join(changed)}: expected "
                f"{[known.get(k) for k in changed]}, got {[mine.get(k) for k in changed]}; use those, another "
                "folder, or another name (--zoo-config)"
            )

    def train(self, on_progress: Callable[[BuildProgress], None] | None) -> None:
        """Train the groups that are not yet on disk; processes that share the work train different groups."""
        finished = 0
        work = [len(members) * max(1, self.epochs(number)) for number, members in enumerate(self.groups)]
        bar = progress(
            total=sum(work),
            desc=f"zoo {self.arguments.name or self.data.name}",
            unit="epoch",
            wanted=self.arguments.progress_bar,
        )
        processes = current_processes()
        with bar:
            for part in self._generations():
                for number in processes.share(part):
                    members = self.groups[number]
                    if self.is_trained(number):
                        bar.update(work[number])
                    else:
                        self._train_group(number, members, self._reporter(bar, number, finished, on_progress), bar)
                    finished += len(members)
                processes.wait()

    def _generations(self) -> list[list[int]]:
        """Numbers of the groups of ancestors, which are trained before their children, and of the children."""
        are_children = [self.runs[members[0]].ancestor is not None for members in self.groups]
        return [[number for number, given in enumerate(are_children) if given == kind] for kind in (False, True)]

    def _train_group(self, number: int, members: list[int], on_epoch: Callable[[int], None], bar: Bar) -> None:
        """Train a group, continuing from a saved state if there is one, and write its file."""
        kept, start = self._read_state(number)
        if start is not None:
            bar.update(len(members) * int(start["epoch"]))
        cadence = Cadence(SAVE_SECONDS)

        def keep(epoch: int, state: Callable[[], dict[str, Tensor]]) -> None:
            if cadence.is_due() and epoch < self.epochs(number):
                with cadence.saving():
                    self._save_state(number, kept, state())

        for snapshot in self._snapshots(number, on_epoch, keep, start):
            self.accuracy = snapshot.test_accuracy.mean().item()
            kept.append(_group_tensors(snapshot, self.layout))
        stacked = {name: torch.stack([part[name] for part in kept]) for name in kept[0]}
        with write_atomically(self.group_path(number)) as partial:
            save_file(stacked, partial)
        remove_state(self.state_path(number))

    def _save_state(self, number: int, kept: list[dict[str, Tensor]], state: Mapping[str, Tensor]) -> None:
        tensors = {f"state/{name}": tensor for name, tensor in state.items()}
        tensors |= {f"{i}/{name}": tensor.contiguous() for i, part in enumerate(kept) for name, tensor in part.items()}
        with write_atomically(self.state_path(number)) as partial:
            save_file(tensors, partial)

    def _read_state(self, number: int) -> tuple[list[dict[str, Tensor]], dict[str, Tensor] | None]:
        """Stored epochs of a group and the state from which to continue; empty if no file is complete."""
        try:
            return read_group_state(self.state_path(number))
        except (FileNotFoundError, InvalidFileError):
            return [], None

    def _reporter(
        self, bar: Bar, number: int, finished: int, on_progress: Callable[[BuildProgress], None] | None
    ) -> Callable[[int], None]:
        """Make the callback that runs after each epoch of a group."""
        self.accuracy = math.nan
        members = self.groups[number]

        def report(epoch: int) -> None:
            bar.update(len(members))
            networks = f"{finished + len(members)}/{len(self.runs)}"
            epochs = f"{epoch}/{self.epochs(number)}"
            facts = {"networks": networks, "epoch": epochs}
            if math.isfinite(self.accuracy):  # after a restart, it is not known before the next kept epoch
                facts["accuracy"] = f"{self.accuracy:.3f}"
            bar.set_postfix(facts)
            if on_progress is not None:
                on_progress(BuildProgress(finished, len(members), epoch, self.accuracy))

        return report

    def _snapshots(
        self,
        number: int,
        on_epoch: Callable[[int], None],
        on_state: StateCallback,
        start: Mapping[str, Tensor] | None,
    ) -> Iterator[Snapshot]:
        runs = [self.runs[i] for i in self.groups[number]]
        networks, are_children = self._start(runs), runs[0].ancestor is not None
        before = self.arguments.epochs if are_children else 0
        hyper_parameters = HyperParameters(
            seeds=[run.seed for run in runs],
            learning_rates=[run.learning_rate for run in runs],
            weight_decays=[run.weight_decay for run in runs],
            optimizers=[run.optimizer for run in runs],
            dropouts=[run.dropout or 0.0 for run in runs],
            data_fractions=[run.data_fraction for run in runs],
        )
        return train_stacked(
            networks.config,
            networks.tensors,
            self.data,
            hyper_parameters,
            epochs=self.epochs(number),
            keep_epochs=[epoch - before for epoch in self.kept_epochs(number)],
            batch_size=self.arguments.batch_size,
            momentum=self.arguments.momentum,
            schedule=self.arguments.schedule,
            train_evaluation_limit=self.arguments.train_evaluation_limit,
            on_epoch=on_epoch,
            on_state=on_state,
            start=start,
            shifts=[run.shift for run in runs] if are_children else None,
        )

    def _start(self, runs: list[RunPlan]) -> StackedNetworks:
        """Untrained networks, each initialised with the seed of its run, or the last epoch of ancestors."""
        config, seeds = self.architecture, [run.seed for run in runs]
        ancestors = [run.ancestor for run in runs if run.ancestor is not None]
        if isinstance(config, ModuleArchitecture):
            return StackedNetworks(config.structure, self._finished(ancestors)) if ancestors else config.fresh(seeds)
        if hasattr(config, "activation"):
            drops = any(run.dropout for run in runs)
            config = with_settings(config, activation=runs[0].activation, dropout=0.0 if drops else None)
        if ancestors:
            return StackedNetworks(config, self._finished(ancestors))
        return StackedNetworks.initialize(config, seeds, [str(run.initialization) for run in runs])

    def _finished(self, run_ids: list[str]) -> dict[str, Tensor]:
        """Tensors of runs of finished groups at their last epoch, `{name: [m, *shape]}`."""
        states = []
        for run_id in run_ids:
            group, member = self.place[run_id]
            with safe_open(self.group_path(group), framework="pt") as file:
                last = {name: file.get_slice(name)[-1:, member] for name in file.keys()}  # noqa: SIM118, not a mapping
            tensors = self.layout.tensors(last["tokens"])
            tensors |= {name: last[f"template.{name}"] for name in self.layout.template}
            states.append(self.layout.for_module(self.layout.complete(tensors)))
        return {name: torch.cat([state[name] for state in states]) for name in states[0]}

    def align(self, zoo: Zoo) -> Alignment | None:
        """Permutations that match the reference; `None`, with a log message, if a user's module cannot be traced."""
        try:
            return align_zoo(zoo).alignment
        except ValueError as error:
            if not isinstance(self.architecture, ModuleArchitecture):
                raise
            logger.warning(
                "the zoo is not aligned: %s; pretrain SANE on it with --views original,original",
                str(error).partition("\n")[0],
            )
            return None

    def _architecture_facts(self) -> tuple[str, dict[str, Any]]:
        if not isinstance(self.architecture, ModuleArchitecture):
            return architecture_facts(self.architecture)
        config = getattr(self.architecture.structure, "config", None)
        if isinstance(config, PreTrainedConfig):
            return foreign_facts({**config.to_dict(), "architectures": [type(self.architecture.structure).__name__]})
        own = {"architectures": [self.architecture.name], MODULE_ARGUMENTS: self.arguments.module_arguments}
        return foreign_facts(own)

    def write_rows(self, folder: Path) -> ZooFacts:
        """Write the finished groups as parquet files."""
        by_id = {run.run_id: run for run in self.runs}
        excluded = self._excluded()
        left_out = set() if self.arguments.include_excluded else {entry["run_id"] for entry in excluded}
        kept = [run for run in self.runs if run.run_id not in left_out]
        features = CHILD_FEATURES if self.arguments.children else FEATURES
        architecture, settings = self._architecture_facts()
        columns = {"layout": layout_key(self.layout), "architecture": architecture}
        splits = {}
        for split, run_ids in split_plans(kept, self.arguments.split_shares, self.arguments.seed).items():
            records = (record for run_id in run_ids for record in self._records(by_id[run_id], columns))
            final: list[float] = []
            noted = _noting(records, self.arguments.kept_epochs[-1], final)
            write_parquet(batched(noted, features), folder, split)
            splits[split] = {
                "runs": len(run_ids),
                "networks": sum(len(self.kept_epochs(self.place[run_id][0])) for run_id in run_ids),
                "test_accuracy": sum(final) / len(final) if final else None,  # undefined without runs
            }
        return ZooFacts(
            name=self.arguments.name or self.data.name,
            layouts={columns["layout"]: self.layout.to_dict()},
            architectures={architecture: settings},
            arguments=self.arguments.to_dict(),
            data=self.examples,
            excluded=tuple(excluded),
            splits=splits,
        )

    def _excluded(self) -> list[dict[str, Any]]:
        """Runs with a diverged or non-finite network, the first such epoch, and the reason."""
        found = []
        for number, members in enumerate(self.groups):
            with safe_open(self.group_path(number), framework="pt") as file:
                largest = file.get_tensor("largest_weight")  # [E, m]
            for j, i in enumerate(members):
                for epoch, value in zip(self.kept_epochs(number), largest[:, j].tolist(), strict=True):
                    if not value <= self.arguments.max_abs_weight:
                        limit = self.arguments.max_abs_weight
                        is_finite = value < float("inf")
                        reason = f"diverged: largest weight {value:.3g} > {limit:g}" if is_finite else "not finite"
                        found.append({"run_id": self.runs[i].run_id, "epoch": epoch, "reason": reason})
                        break
        return sorted(found, key=lambda entry: entry["run_id"])

    def _records(self, run: RunPlan, columns: Mapping[str, str]) -> Iterator[ModelRecord]:
        """The rows of one run, epoch by epoch."""
        group, member = self.place[run.run_id]
        facts = {**dataclasses.asdict(run), **run.shift.properties(), **columns}
        with safe_open(self.group_path(group), framework="pt") as file:
            tokens = file.get_slice("tokens")
            measures = {name: file.get_slice(name)[:, member] for name in MEASURES}
            template = {name: file.get_slice(f"template.{name}") for name in self.layout.template}
            for e, epoch in enumerate(self.kept_epochs(group)):
                values = {name: measure[e].item() for name, measure in measures.items()}
                stored = {name: part[e, member] for name, part in template.items()}
                yield ModelRecord(tokens[e, member], stored, {**facts, **values, "epoch": epoch})


def check_group(path: Path, layout: Layout, *, epochs: int, runs: int) -> None:
    """Check that the file of a group is complete and its tensors have the expected shapes.

    Args:
        path: The file.
        layout: Layout of one network.
        epochs: Stored epochs.
        runs: Training runs of the group.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If the file is damaged or belongs to another group.
    """
    outlines = read_header(path)
    each = (epochs, runs)
    expected: dict[str, tuple[int, ...]] = {"tokens": (*each, layout.num_tokens, layout.token_dim)}
    expected |= dict.fromkeys((*MEASURES, "largest_weight"), each)
    expected |= {f"template.{name}": (*each, *tensor.shape) for name, tensor in layout.template.items()}
    for name, shape in expected.items():
        if name not in outlines or outlines[name].shape != shape:
            got = list(outlines[name].shape) if name in outlines else "nothing"
            raise InvalidFileError(path, field=name, expected=f"a tensor {list(shape)}", got=got, remedy=GROUP_REMEDY)


def read_group_state(path: Path) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Stored epochs of a group in training, and the state from which to continue.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If the file is damaged or incomplete.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_safetensors(path).items():
        part, _, own = name.partition("/")
        parts.setdefault(part, {})[own] = tensor
    kept = [str(index) for index in range(len(parts) - 1)]
    if parts.keys() != {"state", *kept}:
        expected = "a training state and the epochs before it"
        raise InvalidFileError(path, expected=expected, got=sorted(parts), remedy=GROUP_REMEDY)
    return [parts[index] for index in kept], parts["state"]


def _noting(records: Iterator[ModelRecord], epoch: int, accuracies: list[float]) -> Iterator[ModelRecord]:
    """Yield the records, and collect the test accuracies of those at `epoch`."""
    for record in records:
        if record.properties["epoch"] == epoch:
            accuracies.append(record.properties["test_accuracy"])
        yield record


def _layout(config: ZooConfig | ModuleArchitecture, arguments: ZooSettings) -> Layout:
    settings: dict[str, Any] = {"token_layout": arguments.token_layout, "batch_norm": arguments.batch_norm}
    renamed: dict[str, str] = {}
    if isinstance(config, ModuleArchitecture):
        renamed = renamed_tensors(config.structure)
        state = with_saved_names(config.structure.state_dict(), renamed)
    else:
        state = {
            name: tensor if tensor.is_floating_point() else torch.zeros(tensor.shape, dtype=tensor.dtype)
            for name, tensor in empty_model(config).state_dict().items()
        }
        settings["order"] = "given"  # dtype of the computation
    token_dim = arguments.token_dim
    if token_dim is None:
        layers = Layout.from_state_dict(state, token_dim=1, **settings).layers
        token_dim = max(layer.row_length for layer in layers)
    return dataclasses.replace(Layout.from_state_dict(state, token_dim=token_dim, **settings), module_names=renamed)


def _data_facts(data: LabelledData) -> dict[str, Any]:
    """Facts that identify images or texts: name, counts, statistics or length, and a digest of inputs and labels."""
    digest = sha256()
    for split in SPLITS:
        for tensor in data.split(split):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    known = data.describe()
    own = ("mean", "std") if isinstance(data, ImageData) else ("tokens",)
    facts = {name: known[name] for name in ("name", *SPLITS)} | {"num_classes": data.num_classes}
    facts |= {name: known[name] for name in ("classes", *own) if name in known}
    return facts | {"sha256": digest.hexdigest()}


def _identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without pixel statistics, which the digest covers and whose last digits depend on the order of summation.

    Class names are left out, too, since earlier versions did not store them.
    """
    return {key: value for key, value in facts.items() if key not in ("mean", "std", "classes")}


def _group_tensors(snapshot: Snapshot, layout: Layout) -> dict[str, Tensor]:
    """A group's tensors of one epoch: tokens `[m, N, D]`, measurements `[m]`, template tensors `[m, *shape]`."""
    tensors = {name: getattr(snapshot, name) for name in MEASURES if hasattr(snapshot, name)}
    tensors["generalization_gap"] = snapshot.train_accuracy - snapshot.test_accuracy
    tensors["tokens"] = layout.tokens(snapshot.tensors, batch_dims=1)
    kept = with_saved_names(snapshot.tensors, layout.module_names)
    tensors |= {f"template.{name}": kept[name].clone() for name in layout.template}
    weights = [t for n, t in snapshot.tensors.items() if t.is_floating_point() and "running_" not in n]
    largest = torch.stack([weight.flatten(1).abs().amax(dim=1) for weight in weights]).amax(dim=0)
    tensors["largest_weight"] = torch.where(largest.isfinite(), largest, torch.inf)
    return tensors
