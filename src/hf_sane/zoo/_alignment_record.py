"""The stored alignment of a zoo: one permutation per training run, instead of a second copy of the tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_sane.records._documents import Entry, parse_document
from hf_sane.records._errors import InvalidFileError, reading, shorten
from hf_sane.records._files import write_atomically
from hf_sane.symmetry._permutation import Permutation, PermutationSpec
from hf_sane.tokenization._safetensors_header import read_header

FILE_NAME = "alignment.safetensors"
AGAIN = "align the zoo again with align_zoo()"


@dataclass(frozen=True)
class Alignment:
    """Permutations that align the networks of a zoo to a reference network.

    Keys are architectures (values of the `architecture` column), or `architecture:layout` if networks of an
    architecture differ in layout.

    Attributes:
        references: Run whose last epoch was the reference, by key.
        run_ids: Runs in the order of the permutations, by key.
        permutations: `[R, n]` int64 per axis, by key; one permutation applies to all epochs of a run.
        specs: Symmetries that were traced or given, by key, so that they need not be traced again.
    """

    references: Mapping[str, str]
    run_ids: Mapping[str, Sequence[str]]
    permutations: Mapping[str, Permutation]
    specs: Mapping[str, PermutationSpec] = field(default_factory=dict)

    def key(self, architecture: str, layout: str) -> str:
        """Key of the networks of an architecture and layout."""
        return architecture if architecture in self.run_ids else f"{architecture}:{layout}"

    def index(self, key: str, run_ids: Sequence[str] | np.ndarray) -> Tensor:
        """Index of each run's permutation, `[len(run_ids)]` int64.

        Raises:
            KeyError: If the zoo was aligned without one of these runs.
        """
        known = {run_id: i for i, run_id in enumerate(self.run_ids.get(key, ()))}
        if missing := sorted({str(run_id) for run_id in run_ids} - known.keys()):
            raise KeyError(
                f"no alignment for {len(missing)} runs of {key!r} ({missing[:3]}...); align this zoo again with "
                "align_zoo()"
            )
        return torch.tensor([known[str(run_id)] for run_id in run_ids], dtype=torch.int64)

    def save(self, folder: Path) -> None:
        """Write `alignment.safetensors` to a folder."""
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
        """Read an alignment written by `save`; `None` if there is no file.

        Raises:
            InvalidFileError: If the file is not an alignment, or does not hold permutations.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return None
        read_header(path)
        with (
            reading(path, expected="the alignment of a zoo", remedy=AGAIN, also=(SafetensorError,)),
            safe_open(path, framework="pt") as file,
        ):
            facts = parse_document((file.metadata() or {}).get("alignment", ""), path, remedy=AGAIN)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return cls._from_facts(facts, stored)

    @classmethod
    def _from_facts(cls, facts: Entry, stored: Mapping[str, Tensor]) -> "Alignment":
        run_ids = {key: [run.text() for run in runs.entries()] for key, runs in facts["run_ids"].items()}
        references = {key: run.text() for key, run in facts["references"].items()}
        permutations: dict[str, Permutation] = {key: {} for key in run_ids}
        for name, index in stored.items():
            key, _, axis = name.partition("/")
            if key not in run_ids:
                facts["run_ids"].fail(f"the runs of {key!r}, which has permutations")
            expected = f"one permutation for each of {len(run_ids[key])} runs"
            if index.ndim != 2 or len(index) != len(run_ids[key]) or index.dtype != torch.int32:
                got = f"{index.dtype} {list(index.shape)}"
                raise InvalidFileError(facts.file, field=name, expected=expected, got=got, remedy=AGAIN)
            if (index.sort(dim=1).values != torch.arange(index.shape[1])).any():
                got = "rows that are not permutations"
                raise InvalidFileError(facts.file, field=name, expected=expected, got=got, remedy=AGAIN)
            permutations[key][axis] = index.long()
        for key, runs in run_ids.items():
            if len(set(runs)) != len(runs) or key not in references:
                facts["run_ids"].fail(f"every run of {key!r} once, and a reference")
        known = facts.get("specs")
        specs = {} if known is None else {key: _read_spec(entry, permutations) for key, entry in known.items()}
        return cls(references, run_ids, permutations, specs)


def _read_spec(entry: Entry, permutations: Mapping[str, Permutation]) -> PermutationSpec:
    """Symmetries of the stored permutations; sizes are compared first, since a file may claim any size."""
    key = (entry.field or "").removeprefix("specs.")
    stored = {axis: index.shape[-1] for axis, index in permutations.get(key, {}).items()}
    if entry["sizes"].mapping() != stored:
        entry["sizes"].fail(f"the axes of the permutations of {key!r}, {shorten(stored)}")
    spec = PermutationSpec.from_entry(entry)
    spec.inverse(permutations[key])  # rejects permutations that separate parts which belong together
    return spec
