"""The work behind `hf-sane sample`: draw, compare, save."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_sane.core.kde import BandwidthRule
from hf_sane.hub.publish import save_network
from hf_sane.networks.images import ImageData
from hf_sane.networks.stacked import StackedNetworks
from hf_sane.records.run_record import RunRecord
from hf_sane.records.sources import hub_id
from hf_sane.sampling.anchors import choose_anchors
from hf_sane.sampling.comparison import noise_baseline, simple_baselines, training_distances
from hf_sane.sampling.diversity import WeightSpace
from hf_sane.sampling.export import Provenance
from hf_sane.sampling.generation import NetworkCodec
from hf_sane.sampling.selection import Judge, SelectedNetworks
from hf_sane.zoo.alignment import aligned_tokens
from hf_sane.zoo.dataset import Zoo, ZooSplit

PROVENANCE_METHODS = {"sane_subsample": "subsampled", "sane_bootstrap": "bootstrapped", "sane_kde": "kde"}

Bandwidth = float | BandwidthRule


def parse_bandwidths(text: str) -> tuple[Bandwidth, ...]:
    """`"0.1"`, `"0.1,0.2"` or the name of a rule.

    Raises:
        ValueError: For anything else.
    """
    rules: dict[str, BandwidthRule] = {"scott": "scott", "silverman": "silverman"}
    if text in rules:
        return (rules[text],)
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"expected a bandwidth >= 0, several separated by commas, 'scott' or 'silverman', got {text!r}"
        ) from error
    return found


def hub_ids(*sources: str) -> Iterator[str]:
    """Those that are repositories on the Hub: cards link to them, but never to a folder of this machine."""
    return (found for source in sources if (found := hub_id(source)) is not None)


def anchor_networks(zoo: Zoo, *, num_anchors: int | None, top_fraction: float, epoch: int | None) -> ZooSplit:
    """Anchors among the training networks, best first; see `choose_anchors`."""
    train = zoo.splits["train"]
    return train.select(choose_anchors(train, num_anchors=num_anchors, top_fraction=top_fraction, epoch=epoch))


@dataclass(frozen=True)
class SamplingJob:
    """Everything that one call of `hf-sane sample` works with.

    Attributes:
        codec: Autoencoder, tokenizer, layout and architecture.
        train: Training networks of the zoo.
        anchors: Those that anchor the sampling.
        data: Images.
        judge: Scores networks on validation images.
        generator: CPU source of randomness.
    """

    codec: NetworkCodec
    train: ZooSplit
    anchors: ZooSplit
    data: ImageData
    judge: Judge
    generator: torch.Generator

    @cached_property
    def training_tokens(self) -> Tensor:
        """`[T, N, D]` raw tokens, aligned if the zoo is."""
        return _tokens(self.train)

    @cached_property
    def anchor_tokens(self) -> Tensor:
        """`[A, N, D]` raw tokens, aligned if the zoo is."""
        return _tokens(self.anchors)

    def compare(self, name: str, selected: SelectedNetworks) -> dict[str, dict[str, float]]:
        """Test accuracy and distance to the nearest training network: of what was sampled, and of everything simpler."""
        draw_noise = noise_baseline(
            self.codec, self.anchor_tokens, self.training_tokens, like=selected.networks, generator=self.generator
        )
        simple = simple_baselines(
            self.codec,
            self.anchor_tokens,
            self.judge,
            num_networks=selected.networks.num_models,
            draw_noise=draw_noise,
            generator=self.generator,
        )
        return {name: self._row(networks) for name, networks in {name: selected.networks, **simple}.items()}

    def _row(self, networks: StackedNetworks) -> dict[str, float]:
        _, accuracy = networks.evaluate(*self.data.split("test"))
        return {
            "test_accuracy": accuracy.mean().item(),
            "best_test_accuracy": accuracy.max().item(),
            "nearest_training_distance": self.distances(networks).mean().item(),
        }

    def distances(self, networks: StackedNetworks) -> Tensor:
        """Distance of each network to the nearest training network, up to permutations of neurons: `[S]`."""
        return training_distances(self.codec, self._space, networks, self.training_tokens)

    @cached_property
    def _space(self) -> WeightSpace:
        return WeightSpace.fit(self.codec.layout, self.training_tokens)

    def save(self, folder: Path, selected: SelectedNetworks, record: RunRecord, *, include_code: bool) -> list[Path]:
        """Save every network in a folder of its own, with provenance, record and card, best first.

        Args:
            folder: Receives `network_0`, `network_1`, ... It is a folder from [`output_folder`].
            selected: The networks.
            record: Of the run; each network gets its own results.
            include_code: Whether the modelling code travels along.
        """
        _, accuracy = selected.networks.evaluate(*self.data.split("test"))
        distances = self.distances(selected.networks)
        facts: Mapping[str, Any] = record.arguments
        folders = []
        for index in range(selected.networks.num_models):
            results: dict[str, Any] = {
                "test_accuracy": accuracy[index].item(),
                "validation_accuracy": selected.validation_accuracy[index].item(),
                "nearest_training_distance": distances[index].item(),
            }
            provenance = Provenance(
                method=PROVENANCE_METHODS[f"sane_{facts['method']}"],
                sane_model=str(facts["sane"]),
                sane_revision=getattr(
                    self.codec.model.config, "_commit_hash", None
                ),  # there after loading from the Hub
                zoo=str(facts["zoo"]),
                zoo_revision=facts.get("zoo_revision"),
                anchors=tuple(self.anchors.run_ids),
                seed=record.seed,
                index=index,
                bandwidth=facts["bandwidth"],
                bandwidth_unit=facts["unit"],
                mode=facts["mode"],
                num_candidates=facts["num_candidates"],
                **results,
            )
            target = folder / f"network_{index}"
            own = replace(record, results=results)
            folders.append(
                save_network(
                    target,
                    selected.networks.model(index),
                    own,
                    title=f"Sampled network {index}",
                    base_model=next(hub_ids(facts["sane"]), None),
                    datasets=list(hub_ids(facts["zoo"])),
                    include_code=include_code,
                    provenance=provenance,
                )
            )
        return folders


def _tokens(split: ZooSplit) -> Tensor:
    return split.stacked_tokens() if split.alignment is None else aligned_tokens(split)
