"""What alignment found: one permutation per training run, kept beside the zoo instead of a second copy of its tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_sane.records.files import write_atomically
from hf_sane.symmetry.permutation import Permutation, PermutationSpec

FILE_NAME = "alignment.safetensors"


@dataclass(frozen=True)
class Alignment:
    """Permutations that bring the networks of a zoo close to a reference network.

    Keys are architectures (values of the `architecture` column); where its networks differ in structure,
    `architecture:layout`.

    Attributes:
        references: Key to the run whose last epoch was the reference.
        run_ids: Key to its runs, in the order of the permutations.
        permutations: Key to `[R, n]` int64 per axis; one permutation serves all epochs of a run.
        specs: Key to the symmetries that were traced or given, so that nobody has to find them again.
    """

    references: Mapping[str, str]
    run_ids: Mapping[str, Sequence[str]]
    permutations: Mapping[str, Permutation]
    specs: Mapping[str, PermutationSpec] = field(default_factory=dict)

    def key(self, architecture: str, layout: str) -> str:
        """What the networks of an architecture and structure go by."""
        return architecture if architecture in self.run_ids else f"{architecture}:{layout}"

    def index(self, key: str, run_ids: Sequence[str] | np.ndarray) -> Tensor:
        """Number of the permutation of each run, `[len(run_ids)]` int64.

        Raises:
            KeyError: If the zoo was aligned without one of these runs.
        """
        known = {run_id: i for i, run_id in enumerate(self.run_ids.get(key, ()))}
        if missing := sorted({str(run_id) for run_id in run_ids} - known.keys()):
            raise KeyError(
                f"no alignment for {len(missing)} runs of {key!r} ({missing[:3]}...); align this zoo anew with "
                "align_zoo()"
            )
        return torch.tensor([known[str(run_id)] for run_id in run_ids], dtype=torch.int64)

    def save(self, folder: Path) -> None:
        """Write `alignment.safetensors` into a folder."""
        tensors: dict[str, Tensor] = {}
        for key, permutation in self.permutations.items():
            tensors |= {f"{key}/{axis}": index.to(torch.int32) for axis, index in permutation.items()}
        facts: dict[str, Any] = {
            "references": dict(self.references),
            "run_ids": {k: list(v) for k, v in self.run_ids.items()},
        }
        if self.specs:
            facts["specs"] = {key: spec.to_dict() for key, spec in self.specs.items()}
        with write_atomically(folder / FILE_NAME) as partial:
            save_file(tensors, partial, metadata={"alignment": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, folder: Path) -> "Alignment | None":
        """Read what `save` wrote; `None` if there is no such file."""
        if not (folder / FILE_NAME).exists():
            return None
        with safe_open(folder / FILE_NAME, framework="pt") as file:
            facts = json.loads(file.metadata()["alignment"])
            permutations: dict[str, Permutation] = {key: {} for key in facts["run_ids"]}
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                key, _, axis = name.partition("/")
                permutations[key][axis] = file.get_tensor(name).long()
        specs = {key: PermutationSpec.from_dict(values) for key, values in facts.get("specs", {}).items()}
        return cls(facts["references"], facts["run_ids"], permutations, specs)
