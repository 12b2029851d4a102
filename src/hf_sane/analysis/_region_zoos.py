"""Labelled networks of one architecture from several zoos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from hf_sane.analysis._region_networks import align_networks, unflatten_networks
from hf_sane.analysis._region_results import RegionScores
from hf_sane.analysis._regions import RegionMap
from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.networks._batchnorm import NUM_BATCHES, condition_batch_norm
from hf_sane.networks._images import load_zoo_images
from hf_sane.networks._modules import architecture_permutations, find_architecture
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import Task
from hf_sane.records._errors import name_some
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._facts import IMPORTED, MIX_KEY
from hf_sane.zoo._mixing import SOURCE_COLUMN
from hf_sane.zoo._symmetries import network_spec

DATA_SET = "data_set"


@dataclass(frozen=True)
class LabelledNetworks:
    """Networks of one architecture, with labels of what they were trained for.

    Attributes:
        config: Architecture, as a configuration or module; `None` if it is unknown and networks cannot be run.
        tensors: `{name: [M, *shape]}`.
        aliases: Main name of each tied tensor, by its other names; tied tensors count once.
        module_names: Names in the module of tensors that have other names here, as in files.
        trace: Function that finds the permutation symmetries; by default those of `config` are used.
        labels: Labels of all networks, by level.
        runs: Training run of every network.
        starts: Initialisation (scheme and seed) of every network; an empty string, or an empty list, if unknown.
    """

    config: ZooConfig | nn.Module | None
    tensors: dict[str, Tensor]
    labels: dict[str, list[str]]
    runs: list[str]
    starts: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    trace: Callable[[], PermutationSpec] | None = None
    module_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def _known_config(self) -> ZooConfig | nn.Module:
        if self.config is None:
            raise ValueError(
                "the architecture of the networks is unknown; pass its code (--module my_file.py:MyModule)"
            )
        return self.config

    @property
    def distinct(self) -> dict[str, Tensor]:
        """The tensors that form points, with only the first of tied ones."""
        return {name: tensor for name, tensor in self.tensors.items() if name not in self.aliases}

    @property
    def num_shared_starts(self) -> int:
        """Number of networks that started from the same weights as a network of another data set.

        This happens in zoos built with the same seed: the nearest neighbour of a network is then its twin, regardless
        of the data set.
        """
        places: dict[str, set[str]] = {}
        for start, data_set in zip(self.starts, self.labels[DATA_SET], strict=False):
            places.setdefault(start, set()).add(data_set)
        return sum(len(places[start]) > 1 for start in self.starts if start)

    @property
    def spec(self) -> PermutationSpec:
        """Permutation symmetries of the architecture.

        Raises:
            ValueError: If the symmetries of the module are unknown.
        """
        try:
            found = (
                self.trace() if self.trace is not None else architecture_permutations(self._known_config, self.tensors)
            )
        except ValueError as error:
            raise ValueError(f"{error}; or map the networks as they are (--no-align)") from error
        if found is None:
            raise ValueError(
                "the symmetries of the networks are unknown; register their module with example inputs "
                "(--module-input), or do not align them (--no-align)"
            )
        return found

    def aligned(self) -> "LabelledNetworks":
        """The same networks with channels permuted onto the first one."""
        spec = self.spec  # which omits names of tied tensors if it comes from a file
        known = {name: tensor for name, tensor in self.tensors.items() if name in spec.axes}
        tensors = self.tensors | align_networks(known, spec)
        return replace(self, tensors=tensors | {name: tensors[kept] for name, kept in self.aliases.items()})

    def at(self, points: Tensor) -> StackedNetworks:
        """The networks at points `[K, P]` of weight space."""
        template = {name: tensor[0] for name, tensor in self.distinct.items()}
        found = unflatten_networks(points, template)
        found |= {name: found[kept] for name, kept in self.aliases.items()}
        tensors = {self.module_names.get(name, name): tensor for name, tensor in found.items()}
        return StackedNetworks(self._known_config, tensors)

    def accuracy(
        self,
        points: Tensor,
        images: Tensor,
        labels: Tensor,
        *,
        calibration: Tensor | None = None,
        num_batches: int = NUM_BATCHES,
    ) -> Tensor:
        """Accuracy of the networks at points of weight space.

        Args:
            points: `[K, P]`.
            images: `[n, C, H, W]`.
            labels: `[n]` int64.
            calibration: Training images from which to re-estimate BatchNorm statistics, as averages of networks
                require; statistics are averaged like weights if `None`.
            num_batches: Number of batches of 32 images for the re-estimation.

        Returns:
            `[K]` float.
        """
        networks = self.at(points)
        if calibration is not None:
            same_batches = torch.Generator().manual_seed(0)
            networks = condition_batch_norm(networks, calibration, num_batches=num_batches, generator=same_batches)
        return networks.evaluate(images, labels)[1]


def zoo_networks(
    zoos: Sequence[Zoo],
    *,
    columns: Sequence[str] = (),
    groups: Mapping[str, Mapping[str, str]] | None = None,
    splits: Sequence[str] = ("train", "validation", "test"),
    epoch: int | None = None,
    limit: int | None = None,
) -> LabelledNetworks:
    """Collect labelled networks from zoos of one architecture.

    The level `"data_set"` is the name of the zoo, by default that of its images, or of each zoo in a mixture
    (`mix_zoos`).

    Args:
        zoos: One or more zoos.
        columns: Columns of the zoos that become levels.
        groups: Additional levels, coarser than data sets: `{level: {data set: label}}`.
        splits: Splits of the networks. Leave out networks that were used for fitting what is evaluated.
        epoch: Epoch of every run; the last one if `None`.
        limit: Use at most this many of the first networks of each zoo.

    Raises:
        KeyError: If a zoo has no such column or split.
        ValueError: If there are no networks, zoos differ in architecture or activation, epochs are not stored, or data
            sets lack a label.
    """
    parts = [(number, zoo, part) for number, zoo in enumerate(zoos) for part in _chosen(zoo, splits, epoch, limit)]
    if not parts:
        raise ValueError(f"expected at least one network, got none in {', '.join(splits)} of {len(zoos)} zoos")
    for column in ("architecture", "activation"):
        found = {
            _registered_name(zoo, part, value) if column == "architecture" else str(value): zoo.facts.name
            for _, zoo, part in parts
            for value in dict.fromkeys(part.column(column).tolist())
        }
        if len(found) > 1:
            shown = ", ".join(f"{value} ({name})" for value, name in found.items())
            raise ValueError(f"expected networks of one {column}, got {shown}; leave the others out")
    _require_same_tensors(parts)
    labels: dict[str, list[str]] = {DATA_SET: []}
    labels |= {level: [] for level in (*columns, *(groups or {}))}
    runs, starts = [], []
    for number, zoo, part in parts:
        names = _data_sets(zoo, part)
        labels[DATA_SET] += names
        for column in columns:
            labels[column] += list(map(str, part.column(column)))  # .tolist() would turn .003 into .003000000026077
        for level, group in (groups or {}).items():
            if missing := sorted(set(names) - group.keys()):
                raise ValueError(f"level {level!r} has no label for the data sets {missing}; it has {sorted(group)}")
            labels[level] += [group[name] for name in names]
        runs += [f"{number}/{run_id}" for run_id in part.run_ids]
        starts += [
            f"{scheme}/{seed}" if isinstance(seed, int) else ""
            for scheme, seed in zip(part.column("initialization").tolist(), part.column("seed").tolist(), strict=True)
        ]
    layout, config = parts[0][2].whole_layout(0), parts[0][2].find_config(0)
    stacks = [layout.complete(part.stacked_tensors()) for _, _, part in parts]
    tensors = {name: torch.cat([stack[name] for stack in stacks]) for name in stacks[0]}
    _, zoo, part = parts[0]
    kind = (str(part.column(name)[0]) for name in ("architecture", "layout"))
    trace = partial(network_spec, zoo.facts, *kind, alignment=zoo.alignment)
    return LabelledNetworks(config, tensors, labels, runs, starts, layout.aliases, trace, layout.module_names)


def _registered_name(zoo: Zoo, part: ZooSplit, architecture: str) -> str:
    """Name of an architecture in a zoo; for networks of a registered module, that of the module.

    Imported networks of a module and those that `zoo build` trained have different settings.
    """
    if not architecture.startswith(IMPORTED):
        return architecture
    row = part.column("architecture").tolist().index(architecture)
    known = find_architecture(zoo.facts.parsed_layouts[part.column("layout")[row]])
    return architecture if known is None else known.name


def _require_same_tensors(parts: Sequence[tuple[int, Zoo, ZooSplit]]) -> None:
    """Refuse networks whose tensors differ, since all imported networks without a configuration are of one kind."""
    shapes: dict[str, tuple[int, ...]] | None = None
    for _, zoo, part in parts:
        for kind in dict.fromkeys(part.column("layout").tolist()):
            layout = zoo.facts.parsed_layouts[kind]
            own = {tensor.name: tuple(tensor.shape) for layer in layout.layers for tensor in layer.tensors}
            own |= {name: tuple(tensor.shape) for name, tensor in layout.template.items()}
            if shapes is None:
                shapes, first = own, zoo.facts.name
            elif own != shapes:
                differing = sorted(name for name, _ in own.items() ^ shapes.items())
                raise ValueError(
                    f"expected networks of one architecture, got different tensors in {first} and {zoo.facts.name}, "
                    f"such as {name_some(dict.fromkeys(differing))}; name zoos of one architecture"
                )


def score_zoo_regions(
    zoos: Sequence[Zoo],
    networks: LabelledNetworks,
    found: RegionMap,
    levels: Sequence[str],
    *,
    num_points: int,
    seed: int = 0,
    task: Task | None = None,
) -> dict[str, RegionScores]:
    """Evaluate points inside every region, on the test images of its data sets or by a task.

    Args:
        zoos: Zoos whose images are used, unless there is a task.
        networks: Networks from [`zoo_networks`].
        found: Map of their weights.
        levels: Levels whose regions are mapped.
        num_points: Number of points on lines, and in hulls, of each region.
        seed: Random seed of the points.
        task: Task that judges networks, instead of accuracy on the zoos' images; batch-norm statistics are then
            averaged.

    Returns:
        `{"level: label": scores}`.
    """
    data = {} if task is not None else {zoo.facts.name: load_zoo_images(zoo.facts) for zoo in zoos}
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for level in levels:
        for name in dict.fromkeys(networks.labels[level]):
            pairs = zip(networks.labels[level], networks.labels["data_set"], strict=True)
            own = dict.fromkeys(data_set for label, data_set in pairs if label == name)

            def score(points: Tensor, own: dict[str, None] = own) -> Tensor:
                if task is not None:
                    return task.measure(networks.at(points), "test")[0]
                each = [
                    networks.accuracy(points, *data[key].split("test"), calibration=data[key].train_images)
                    for key in own
                ]
                return torch.stack(each).mean(dim=0)

            measured = found.score_region(level, name, score, num_points=num_points, generator=generator)
            scores[f"{level}: {name}"] = replace(measured, higher_is_better=task is None or task.higher_is_better)
    return scores


def _data_sets(zoo: Zoo, part: ZooSplit) -> list[str]:
    """Data set of each network: the zoo's name, or the name of its zoo in a mixture."""
    if MIX_KEY in zoo.facts.data:
        return [str(name) for name in part.column(SOURCE_COLUMN).tolist()]
    return [zoo.facts.name] * len(part)


def _chosen(zoo: Zoo, splits: Sequence[str], epoch: int | None, limit: int | None) -> list[ZooSplit]:
    """Select every run at one epoch, split by split, without empty selections."""
    found, left = [], len(zoo) if limit is None else limit
    for name in splits:
        split = zoo.splits[name]
        if len(split):
            split = split.final_epochs() if epoch is None else split.at_epoch(epoch)
        part = split.select(slice(0, left))
        left -= len(part)
        if len(part):
            found.append(part)
    return found
