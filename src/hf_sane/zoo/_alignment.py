"""Align a zoo's networks to a reference by permuting channels, without changing their outputs."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.core._types import StateDict
from hf_sane.records._errors import name_some
from hf_sane.symmetry._matching import match_many
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry._token_permutations import TokenPermutations
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._facts import DEFAULT_CONFIG
from hf_sane.zoo._records import ANCESTOR
from hf_sane.zoo._symmetries import Specs, UnknownSymmetriesError, fixed_spec, network_spec
from hf_sane.zoo._writing import writing_zoo

logger = logging.getLogger(__name__)

NETWORKS_PER_BLOCK = 512
MATCH_BYTES = 512 * 2**20  # weights in memory at a time


def align_zoo(zoo: Zoo, *, reference: StateDict | None = None, specs: Specs | None = None) -> Zoo:
    """Align every training run of a zoo to a reference network.

    As in SANE (arXiv:2406.09997): weight matching from git re-basin (arXiv:2209.04836) between a run's last epoch and
    the reference. The same permutation is used for all epochs of the run, so that its trajectory remains intact, and
    for its children, which share its order of channels. The reference is the first training run at its last epoch.
    Networks that are not finite (kept on request) are not permuted. Unlike the released code, which stores aligned
    copies, only permutations are stored: `aligned_tokens` and the window sampler apply them while reading. The
    symmetries of imported networks are traced from the configuration in their repository. Networks whose symmetries
    are unknown stay as they are, with a log message, if there are others that can be aligned.

    Args:
        zoo: Zoo to align; each architecture (and each layout of imported networks) gets its own reference.
        reference: Network to align to instead, if the zoo has one architecture.
        specs: Symmetries by architecture or layout (values of these columns), for imported networks that cannot be
            traced. They are stored in the alignment.

    Returns:
        The zoo with its [`Alignment`].

    Raises:
        ValueError: If `reference` is given for several architectures, or the symmetries of all networks are unknown.
    """
    finals = [split.final_epochs() for split in zoo.splits.values()]
    kinds = sorted(
        {pair for split in finals for pair in zip(*map(split.column, ("architecture", "layout")), strict=True)}
    )
    architectures = [str(architecture) for architecture, _ in kinds]
    if reference is not None and len(kinds) > 1:
        raise ValueError(
            f"expected one architecture to align to a reference, got {architectures}; leave the reference out"
        )
    references, run_ids, permutations, found = {}, {}, {}, {}
    known = _known_specs(zoo, kinds, specs)
    for architecture, layout in kinds:
        key = f"{architecture}:{layout}" if architectures.count(architecture) > 1 else str(architecture)
        is_known = (architecture, layout) in known
        spec = known[architecture, layout] if is_known else fixed_spec(zoo.facts.parsed_layouts[str(layout)])
        chosen = [
            (split.column("architecture") == architecture) & (split.column("layout") == layout) for split in finals
        ]
        parts = [split.select(mask) for split, mask in zip(finals, chosen, strict=True) if mask.any()]
        first = next((i for i in range(len(parts[0])) if parts[0].tokens(i).isfinite().all()), 0)
        target = parts[0].state_dict(first) if reference is None else reference
        references[key] = parts[0].run_ids[first] if reference is None else "given"
        run_ids[key] = [run_id for part in parts for run_id in part.run_ids]
        if not is_known:
            logger.warning(
                "not aligned, since their symmetries are unknown: %d of the runs, %s (%s). Pass their code: "
                "hf_sane.register_architecture(MyModule, example_inputs), or --module my_file.py:MyModule "
                "--module-input 1,28,28",
                *(len(run_ids[key]), name_some(run_ids[key]), key),
            )
        matched = [_match(spec, part.select(rows), target) for part in parts for rows in _pieces(part)]
        rows = _permuted_as(parts, run_ids[key])
        permutations[key] = {axis: torch.cat([piece[axis] for piece in matched])[rows] for axis in spec.sizes}
        if zoo.facts.parsed_architectures[architecture] is None or {architecture, layout} & set(specs or ()):
            found[key] = spec
    return zoo.with_alignment(Alignment(references, run_ids, permutations, found))


def _known_specs(
    zoo: Zoo, kinds: Sequence[tuple[Any, Any]], specs: Specs | None
) -> dict[tuple[Any, Any], PermutationSpec]:
    """Symmetries of architectures and layouts, without unknown ones, unless there are no others."""
    found, errors = {}, []
    for architecture, layout in kinds:
        try:
            found[architecture, layout] = network_spec(zoo.facts, str(architecture), str(layout), specs=specs)
        except UnknownSymmetriesError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return found


def align_folder(
    folder: str | Path,
    config: str = DEFAULT_CONFIG,
    *,
    specs: Specs | None = None,
    describe: Callable[[Path, Zoo], object] | None = None,
) -> Zoo:
    """Align a finished zoo in its folder; only the alignment is written.

    Args:
        folder: Folder of the zoo.
        config: Name of the zoo in the folder.
        specs: See [`align_zoo`].
        describe: Called with the folder of the files and the zoo, before it is finished, to add a report.

    Returns:
        The zoo with its alignment.

    Raises:
        FileExistsError: If files of the zoo were added or changed.
        FolderInUseError: If another process is writing to the folder.
        InvalidFileError: If the zoo is incomplete.
    """
    with writing_zoo(folder, config, replace=True) as writer:
        zoo = align_zoo(Zoo.load(folder, config), specs=specs)
        assert zoo.alignment is not None
        writer.publish_alignment(zoo.alignment, describe and (lambda stage: describe(stage, zoo)))
    return zoo


def _permuted_as(parts: list[ZooSplit], run_ids: list[str]) -> list[int]:
    """Position of the run whose permutation each run takes: its ancestor's, if it has one in the zoo."""
    place = {run_id: i for i, run_id in enumerate(run_ids)}
    named = [
        name
        for part in parts
        for name in (part.column(ANCESTOR) if ANCESTOR in part.table.scalar_columns else [None] * len(part))
    ]
    return [place.get(str(ancestor), i) for i, ancestor in enumerate(named)]


def _pieces(split: ZooSplit) -> list[np.ndarray]:
    """Positions of networks to match together, in pieces of bounded memory."""
    size = max(1, MATCH_BYTES // (4 * split.tokens(0).numel()))
    return [np.arange(start, min(start + size, len(split))) for start in range(0, len(split), size)]


def _match(spec: PermutationSpec, part: ZooSplit, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Permutations `[len(part), n]` per axis; the identity for networks that are not finite (kept on request)."""
    tensors = part.stacked_tensors()
    finite = torch.stack([tensor.reshape(len(part), -1).isfinite().all(dim=1) for tensor in tensors.values()]).all(
        dim=0
    )
    permutations = spec.identity(len(part))
    for axis, index in match_many(spec, reference, {name: tensor[finite] for name, tensor in tensors.items()}).items():
        permutations[axis][finite] = index
    return permutations


def token_permutations(split: ZooSplit) -> TokenPermutations:
    """The alignment of a split's architecture, as permutations of tokens.

    Raises:
        ValueError: If the zoo is not aligned, or the split mixes layouts or architectures.
    """
    if split.alignment is None:
        raise ValueError("expected an aligned zoo, got one without an alignment; align it with align_zoo(zoo)")
    split.require_one("layout", "architecture")
    architecture, layout = (str(split.column(name)[0]) for name in ("architecture", "layout"))
    spec = network_spec(split.facts, architecture, layout, alignment=split.alignment)
    return TokenPermutations(
        spec, split.layout(0), split.alignment.permutations[split.alignment.key(architecture, layout)]
    )


def aligned_tokens(split: ZooSplit) -> Tensor:
    """Raw tokens of all networks, each permuted to match the reference: `[M, N, D]` float32.

    Templates are not permuted. If BatchNorm is not tokenized, aligned tokens do not decode to the same function.

    Raises:
        ValueError: If the zoo is not aligned, or the networks differ in layout or architecture.
    """
    found = token_permutations(split)
    assert split.alignment is not None
    key = split.alignment.key(*(str(split.column(name)[0]) for name in ("architecture", "layout")))
    chosen = split.alignment.index(key, split.run_ids)
    return found.apply(split.stacked_tokens(), chosen)


def comparable_tokens(split: ZooSplit) -> Tensor:
    """Raw tokens of all networks, aligned if the zoo is: `[M, N, D]` float32."""
    return split.stacked_tokens() if split.alignment is None else aligned_tokens(split)


def reference_distances(zoo: Zoo, key: str, *, limit: int) -> np.ndarray:
    """Distances of runs to the reference at their last epochs, before and after alignment: `[2, R]`.

    Args:
        zoo: An aligned zoo.
        key: Key of the networks in the alignment.
        limit: Runs that are measured at most.

    Returns:
        Euclidean distances as shares of the reference's norm; of no run if the reference is not in the zoo.
    """
    assert zoo.alignment is not None
    architecture, _, layout = key.partition(":")
    parts = []
    for split in zoo.splits.values():
        final = split.final_epochs()
        chosen = final.column("architecture") == architecture
        parts.append(final.select(chosen & (final.column("layout") == layout) if layout else chosen))
    name = zoo.alignment.references[key]
    found = [part.tokens(part.run_ids.index(name)) for part in parts if name in part.run_ids]
    distances, room = [np.zeros((2, 0))], limit
    for part in parts if found else ():
        part = part.select(np.flatnonzero(np.array(part.run_ids) != name)[:room])
        room -= len(part)
        if len(part):
            pairs = torch.stack([part.stacked_tokens(), aligned_tokens(part)]) - found[0]
            distances.append((pairs.flatten(2).norm(dim=2) / found[0].norm()).numpy())
    measured = np.concatenate(distances, axis=1)
    return measured[:, np.isfinite(measured).all(axis=0)]


def token_blocks(
    split: ZooSplit, *, aligned: bool, size: int = NETWORKS_PER_BLOCK
) -> Iterator[tuple[np.ndarray, Layout, Tensor]]:
    """Raw tokens of a split in blocks of one layout: positions in the split `[m]`, layout, tokens `[m, N, D]`."""
    for block in layout_blocks(split, size):
        yield block, *read_block(split, block, aligned=aligned)


def layout_blocks(split: ZooSplit, size: int) -> list[np.ndarray]:
    """Positions in a split `[m]` of blocks of at most `size` networks with one architecture and layout."""
    keys = np.char.add(split.column("architecture").astype(str), split.column("layout").astype(str))
    members = [np.flatnonzero(keys == key) for key in dict.fromkeys(keys.tolist())]
    return [found[start : start + size] for found in members for start in range(0, len(found), size)]


def read_block(split: ZooSplit, block: np.ndarray, *, aligned: bool) -> tuple[Layout, Tensor]:
    """Layout and raw tokens `[m, N, D]` of a block from [`layout_blocks`]."""
    part = split.select(block)
    return part.layout(0), aligned_tokens(part) if aligned else part.stacked_tokens()
