"""Facts about the networks of a zoo: their places on a map, properties, layers, spectra and neighbours."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from hf_sane.analysis._pictures import GREY, PALETTE, collecting_pictures, scale_colours
from hf_sane.analysis._plots import plot_densities
from hf_sane.analysis._projection import MIN_POINTS, project
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.cards._tables import fact_text
from hf_sane.core._layout_facts import describe_layout
from hf_sane.probing._baselines import layer_statistics
from hf_sane.probing._zoo_features import stacked_features
from hf_sane.records._errors import name_some, shorten
from hf_sane.zoo._alignment import token_blocks
from hf_sane.zoo._dataset import Zoo, ZooSplit

COLOURED_FIRST = ("test_accuracy", "validation_accuracy", "epoch")  # properties, if they are known
SHADES = 64
NEIGHBOURS = 10
STATISTICS = 7  # of a layer
NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")

Embedding = Callable[[ZooSplit | list[nn.Module]], Tensor]
Table = tuple[list[str], list[list[str]]]  # header and rows, as text


@dataclass(frozen=True)
class Atlas:
    """The networks of a zoo, numbered from 0 over all splits, and their places on a map.

    Attributes:
        zoo: The zoo.
        networks: All of its networks whose weights are finite.
        features: `[M, F]`, standardised; networks with similar features are neighbours.
        points: `[M, 2]`, two principal components of the features.
        scale: Mean and standard deviation of the features before standardisation, `[2, F]`.
        split_names: Split of each network.
        embed: Embeds networks; `None` if features are statistics of the weights.
        notes: What was left out.
    """

    zoo: Zoo
    networks: ZooSplit
    features: Tensor
    points: Tensor
    scale: Tensor
    split_names: list[str]
    embed: Embedding | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, zoo: Zoo, embed: Embedding | None = None) -> Self:
        """Map the networks of a zoo by their embeddings or, without `embed`, by statistics of their weights.

        Raises:
            ValueError: If no network has finite weights.
        """
        networks = _joined(zoo)
        names = [name for name, split in zoo.splits.items() for _ in range(len(split))]
        finite = np.array([bool(networks.tokens(index).isfinite().all()) for index in range(len(networks))])
        if not finite.any():
            raise ValueError(f"all networks of {zoo.source or zoo.facts.name} have NaN or infinite weights")
        left_out = name_some([shorten(networks.run_ids[index]) for index in np.flatnonzero(~finite)])
        networks = networks.select(finite)
        found = (_statistics(networks) if embed is None else embed(networks)).double()
        mean, spread = found.mean(dim=0), found.std(dim=0, unbiased=False)
        scale = torch.stack([mean, torch.where(spread > 0, spread, 1.0)])
        features = (found - scale[0]) / scale[1]
        if len(found) < MIN_POINTS or found.shape[1] < 2:  # side by side
            points = torch.stack([torch.arange(len(found)), torch.zeros(len(found))], dim=1)
        else:
            points = project(features, "pca")
        notes = () if finite.all() else (f"left out, because of NaN or infinite weights: {left_out}",)
        kept = [name for name, is_finite in zip(names, finite, strict=True) if is_finite]
        return cls(zoo, networks, features, points.double(), scale, kept, embed, notes)

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def properties(self) -> dict[str, list[Any]]:
        """Properties of all networks by name, without those that are unknown for all; `None` for unknown values."""
        columns = [name for name in self.networks.table.scalar_columns if name != "layout"]
        found = {name: [_known(value) for value in self.networks.column(name).tolist()] for name in columns}
        found["split"] = list(self.split_names)
        return {name: values for name, values in found.items() if any(value is not None for value in values)}

    @cached_property
    def names(self) -> list[str]:
        """Run and epoch of each network."""
        runs, epochs = self.properties["run_id"], self.properties.get("epoch", [None] * len(self))
        return [
            shorten(f"{run}" if epoch is None else f"{run}, epoch {epoch}")
            for run, epoch in zip(runs, epochs, strict=True)
        ]

    @property
    def colourable(self) -> list[str]:
        """Properties in which networks differ, the most telling ones first."""
        names = [name for name, values in self.properties.items() if len(set(values)) > 1] or ["split"]
        first = [name for name in COLOURED_FIRST if name in names]
        return list(dict.fromkeys([*first, *names]))

    def colouring(self, name: str) -> dict[str, Any]:
        """Colours of a map by a property: a scale for numbers, the palette of all plots for everything else.

        Returns:
            `colours`, the colour `of` each network (-1 if the property is not known), each value as text, `texts`,
            and `labels` of all colours or both ends of the `scale`.

        Raises:
            ValueError: If the zoo does not have the property.
        """
        if name not in self.properties:
            raise ValueError(f"expected a property among {', '.join(self.properties)}, got {name!r}")
        values = self.properties[name]
        title, texts = name.replace("_", " "), [fact_text(value, shorten) for value in values]
        known = [value for value in values if value is not None]
        if all(isinstance(value, Real) for value in known):
            low, high = min(known), max(known)
            step = (SHADES - 1) / ((high - low) or 1)
            of = [-1 if value is None else round((value - low) * step) for value in values]
            ends = [fact_text(low), fact_text(high)]
            return {"title": title, "colours": scale_colours(SHADES), "of": of, "texts": texts, "scale": ends}
        ranks = {label: rank for rank, (label, _) in enumerate(Counter(known).most_common())}
        shown = min(len(ranks), len(PALETTE) - 1)  # the last colour is for all others
        of = [-1 if value is None else min(ranks[value], shown) for value in values]
        labels, colours = [shorten(str(label)) for label in list(ranks)[:shown]], list(PALETTE[:shown])
        if len(ranks) > shown:
            labels, colours = [*labels, f"{len(ranks) - shown} others"], [*colours, GREY]
        return {"title": title, "colours": colours, "of": of, "texts": texts, "labels": labels}

    def map(self, name: str, sampled: Sequence[nn.Module] = ()) -> dict[str, Any]:
        """Content of the map: places from 0 to 1 and colours of all networks, and places of sampled networks."""
        extra = self.place(sampled)
        everything = torch.cat([self.points, extra])
        low, high = everything.amin(dim=0), everything.amax(dim=0)
        places = (everything - low) / torch.where(high > low, high - low, 1.0)
        x, y = (np.round(places[:, axis].numpy(), 4).tolist() for axis in (0, 1))
        sampled_places = {"x": x[len(self) :], "y": y[len(self) :]}
        return self.colouring(name) | {
            "x": x[: len(self)],
            "y": y[: len(self)],
            "names": self.names,
            "sampled": sampled_places,
        }

    def place(self, networks: Sequence[nn.Module]) -> Tensor:
        """Places of networks that are not in the zoo, `[S, 2]`."""
        if not networks or self.embed is None:
            return torch.zeros(0, 2, dtype=torch.float64)
        features = (self.embed(list(networks)).double() - self.scale[0]) / self.scale[1]
        axes = torch.linalg.lstsq(self.features, self.points).solution
        return features @ axes

    def card(self, index: int) -> Table:
        """All known properties of a network."""
        rows = [[name.replace("_", " "), values[index]] for name, values in self.properties.items()]
        layout = self.networks.layout(index)
        rows += [["weights", layout.num_weights], ["tokens", layout.num_tokens]]
        return ["property", "value"], [[name, fact_text(v, shorten)] for name, v in rows if v is not None]

    def layers(self, index: int) -> Table:
        """Layers of a network: shapes, tokens, and the distribution of the weights."""
        layout, tokens = self.networks.layout(index), self.networks.tokens(index)
        rows = []
        for facts, part in zip(describe_layout(layout)["layers"], layout.token_slices, strict=True):
            weights = tokens[part][layout.weight_mask[part]]
            shapes = " + ".join("x".join(map(str, shape)) or "scalar" for shape in facts["shape"])
            numbers = [weights.mean().item(), weights.std(unbiased=False).item(), weights.abs().max().item()]
            cells = [facts["name"], facts["kind"], shapes, facts["tokens"], *numbers]
            rows.append([fact_text(cell, shorten) for cell in cells])
        return ["layer", "kind", "shape", "tokens", "mean", "std", "largest"], rows

    def spectrum(self, index: int) -> str:
        """Spectra of the weight matrices of a network as pictures (SVG in HTML) for wide and for narrow screens.

        Raises:
            ValueError: If the network has no matrix.
        """
        report = analyze_spectrum(self.networks.state_dict(index), SpectrumSettings(num_bootstrap=0))
        report = replace(report, source=self.names[index])
        with TemporaryDirectory() as folder, collecting_pictures() as pictures:
            plot_densities(report, Path(folder, "spectrum.png"))
        return f'<div class="wide">{pictures[0].svg}</div><div class="narrow">{pictures[0].narrow}</div>'

    def neighbours(self, index: int) -> list[tuple[int, float]]:
        """The nearest networks, and their distances in standardised features."""
        distances = (self.features - self.features[index]).norm(dim=1)
        nearest = distances.argsort(stable=True).tolist()
        return [(other, distances[other].item()) for other in nearest if other != index][:NEIGHBOURS]

    def chosen(self, indices: Sequence[int]) -> Zoo:
        """A zoo of the given networks, which are its training networks, to sample around them."""
        return replace(self.zoo, splits={"train": self.networks.select(list(indices))})


def _known(value: Any) -> Any:
    """A value, or `None` for one that is not known."""
    return None if value is None or value == "" or value != value else value


def _joined(zoo: Zoo) -> ZooSplit:
    """The networks of all splits in one."""
    tables = [split.table.dataset.select(split.rows) for split in zoo.splits.values() if len(split)]
    return ZooSplit(datasets.concatenate_datasets(tables), zoo.facts, zoo.alignment)


def _statistics(networks: ZooSplit) -> Tensor:
    """Statistics of the layers of each network; their means over layers, if there are several layouts."""
    is_one = len(set(networks.column("layout").tolist())) == 1
    found, order = [], []
    for members, layout, tokens in token_blocks(networks, aligned=False):
        values = layer_statistics(tokens, layout)
        found.append(values if is_one else values.unflatten(1, (-1, STATISTICS)).mean(dim=1))
        order.append(members)
    return stacked_features(found)[np.argsort(np.concatenate(order))]


def parse_numbers(text: str, count: int) -> list[int]:
    """Numbers of networks in a text such as `3, 14-16`, each of them once.

    Raises:
        ValueError: If the text is anything else, or no network has such a number.
    """
    numbers: dict[int, None] = {}
    for part in text.replace(",", " ").split():
        found = NUMBERS.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not first <= last < count:
            raise ValueError(f"expected numbers of networks from 0 to {count - 1}, such as 3, 14-16, got {part!r}")
        numbers |= dict.fromkeys(range(first, last + 1))
    return list(numbers)
