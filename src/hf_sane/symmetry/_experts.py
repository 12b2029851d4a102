"""Experts of a mixture that files store one by one, or in one tensor: their order, and that of the units in each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.symmetry._parts import Part
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry._saved_forms import SavedForm
from hf_sane.symmetry._saved_spec import Place, held_by, spec_of, with_reasons
from hf_sane.symmetry._selection import select_tensors

MODULE = "experts"  # name of the module that holds them in all models of Transformers


@dataclass(frozen=True)
class Stack:
    """Matrices of experts that are joined into one, in which the units of all experts are one axis.

    Attributes:
        names: The tensors of the experts, or the one that holds them all.
        dim: Dimension along which they are joined; `None` for a new first one.
        fused: Dimension that holds the experts, if they are in one tensor.
        count: Number of experts.
    """

    names: tuple[str, ...]
    dim: int | None
    fused: int | None
    count: int


@dataclass(frozen=True)
class Symmetries:
    """Permutation symmetries of networks, in which experts may be exchanged.

    Permutations reorder entries of a tensor. To exchange tensors, those of the experts are joined first.

    Attributes:
        spec: The symmetries of the joined tensors.
        stacks: Which tensors are joined, by name in the spec.
    """

    spec: PermutationSpec
    stacks: Mapping[str, Stack] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The tensors of the network."""
        return [x for name in self.spec.axes for x in (self.stacks[name].names if name in self.stacks else (name,))]

    def join(self, tensors: Mapping[str, Tensor]) -> StateDict:
        """Join the experts of a network; other tensors remain."""
        found = dict(tensors)
        for name, stack in self.stacks.items():
            parts = [found.pop(member) for member in stack.names]
            if stack.fused is not None:
                parts = list(parts[0].unbind(stack.fused))
            found[name] = torch.stack(parts) if stack.dim is None else torch.cat(parts, stack.dim)
        return found

    def split(self, tensors: Mapping[str, Tensor]) -> StateDict:
        """Undo [`join`]."""
        found = dict(tensors)
        for name, stack in self.stacks.items():
            whole = found.pop(name)
            parts = list(whole.unbind() if stack.dim is None else whole.chunk(stack.count, stack.dim))
            if stack.fused is not None:
                parts = [torch.stack(parts, stack.fused)]
            found |= dict(zip(stack.names, parts, strict=True))
        return found

    def select(self, names: Mapping[str, str]) -> "Symmetries":
        """Restrict them to some tensors, with other names; experts only if all of them are among these.

        Args:
            names: Old names by new name.
        """
        new = {old: name for name, old in names.items()}
        stacks = {
            name: Stack(tuple(new[x] for x in stack.names), stack.dim, stack.fused, stack.count)
            for name, stack in self.stacks.items()
            if all(x in new for x in stack.names)
        }
        plain = {name: old for name, old in names.items() if old in self.spec.axes and old not in self.stacks}
        kept = {name: name for name in self.spec.axes if name in stacks} | plain
        return Symmetries(select_tensors(self.spec, kept), stacks)


@dataclass(frozen=True)
class Block:
    """The experts of one layer of a model.

    Attributes:
        name: Name of their module.
        count: Number of experts.
        tensors: Their tensors, whose first dimension is the experts.
        routers: Tensors with an entry per expert, by which they are chosen.
        hidden: Axes that occur in these tensors only: the units of each expert.
    """

    name: str
    count: int
    tensors: frozenset[str]
    routers: frozenset[str]
    hidden: frozenset[str]


def find_blocks(spec: PermutationSpec, shapes: Mapping[str, Sequence[int]]) -> list[Block]:
    """The experts of a model, from the names and shapes of its tensors, which must be verified."""
    modules: dict[str, list[str]] = {}
    for name in spec.axes:
        module = name.rpartition(".")[0]
        if module.rpartition(".")[2] == MODULE and shapes[name]:
            modules.setdefault(module, []).append(name)
    found = []
    for module, names in modules.items():
        counts = {shapes[name][0] for name in names}
        count = max(counts)
        if counts == {count} and count > 1 and all(spec.axes[name][0] is None for name in names):
            parent = module.rpartition(".")[0]
            beside = [x for x in spec.axes if x.startswith(parent) and not x.startswith(f"{module}.") and shapes[x]]
            routers = [x for x in beside if shapes[x][0] == count and spec.axes[x][0] is None]
            hidden = [
                axis
                for axis, places in spec.occurrences.items()
                if axis not in spec.parts
                and {place.tensor for place in places} <= set(names)
                and len({place.tensor for place in places}) == len(places)
            ]
            found.append(Block(module, count, frozenset(names), frozenset(routers), frozenset(hidden)))
    return found


def _own(place: Place, block: Block, expert: int, per: int, sizes: Mapping[str, int]) -> Place:
    """The place in one of several experts, `per` of which may be exchanged."""
    if place.axis not in block.hidden:
        return place
    entry = expert % per * sizes[place.axis] + place.entry
    return Place(place.axis + _group(block, expert, per), entry, place.kind)


def _group(block: Block, expert: int, per: int) -> str:
    """Ending of the names of axes of the experts that may be exchanged with one."""
    return "" if per == block.count else f".{expert // per}"


def _chosen(block: Block, expert: int, per: int) -> Place:
    return Place(None) if per == 1 else Place(block.name + _group(block, expert, per), expert % per)


def _sizes_and_parts(
    spec: PermutationSpec, blocks: Mapping[Block, int]
) -> tuple[dict[str, int], dict[str, tuple[Part, ...]]]:
    """Sizes and parts of all axes, of which those of experts replace the axes of their units."""
    sizes: dict[str, int] = {}
    parts = dict(spec.parts)
    for axis, size in spec.sizes.items():
        block = next((x for x in blocks if axis in x.hidden), None)
        if block is None:
            sizes[axis] = size
            continue
        per = blocks[block]
        for group in _groups(block, per):
            sizes[axis + group] = per * size
            if per > 1:
                experts = _part(block, group, per)
                parts[axis + group] = experts, Part(f"{axis}{group}/1", size, (experts.name,))
    for block, per in blocks.items():
        for group in _groups(block, per) if per > 1 else ():
            sizes[block.name + group] = per
            parts[block.name + group] = (_part(block, group, per),)
    return sizes, parts


def _groups(block: Block, per: int) -> list[str]:
    return [_group(block, expert, per) for expert in range(0, block.count, per)]


def _part(block: Block, group: str, per: int) -> Part:
    """The experts of a group, which are reordered alike in all their tensors."""
    return Part(f"{block.name}{group}/0", per)


def saved_spec(spec: PermutationSpec, forms: Mapping[str, SavedForm], blocks: Iterable[Block] = ()) -> PermutationSpec:
    """The spec of a model for the tensors in its files.

    Args:
        spec: Spec of the model.
        forms: Forms of the tensors in its files.
        blocks: Experts whose units may be reordered in each differently, which is possible if files store them one by
            one.
    """
    ours = {name: next((x for x in blocks if form.source in x.tensors), None) for name, form in forms.items()}
    fused = {block for name, block in ours.items() if 0 not in forms[name].at}
    per = {block: 1 for block in blocks if block not in fused}
    contents = {}
    for name, form in forms.items():
        contents[name], block = held_by(spec, form), ours[name]
        if block in per:
            contents[name] = [[_own(x, block, form.at[0], 1, spec.sizes) for x in found] for found in contents[name]]
    unmatched = {name for name, form in forms.items() if form.source in spec.unmatched}
    return with_reasons(spec_of(contents, *_sizes_and_parts(spec, per), unmatched), spec, forms)


def stacked(spec: PermutationSpec, forms: Mapping[str, SavedForm], blocks: Mapping[Block, int]) -> Symmetries | None:
    """The symmetries in which experts may be exchanged.

    Args:
        spec: Symmetries of the model.
        forms: Forms of the tensors in its files.
        blocks: The experts of each layer, and how many of them, one after the other, may be exchanged.

    Returns:
        The symmetries, which must be verified; `None` if some experts are not in the files.
    """
    contents: dict[str, list[list[Place]]] = {}
    stacks: dict[str, Stack] = {}
    members: dict[tuple[object, ...], dict[int, str]] = {}
    unmatched = {name for name, form in forms.items() if form.source in spec.unmatched}
    for name, form in forms.items():
        found = held_by(spec, form)
        block = next((x for x in blocks if form.source in x.tensors), None)
        if block is None:
            for router in (x for x in blocks if form.source in x.routers):
                for dim, pair in enumerate(form.dims):
                    if pair is not None and pair[0] == 0:
                        found[dim] = [_chosen(router, expert, blocks[router]) for expert in pair[1]]
            contents[name] = found
            continue
        if 0 in form.at:
            same = members.setdefault((form.source, form.dims), {})
            same[form.at[0]] = name
            if len(same) < block.count:
                continue
            names, fused = tuple(same[expert] for expert in range(block.count)), None
            joined = _common_name(names)
        else:
            names, joined = (name,), f"{name}.weight"
            fused = next(dim for dim, pair in enumerate(form.dims) if pair is not None and pair[0] == 0)
            if form.dims[fused] != (0, tuple(range(block.count))):
                return None
            del found[fused]
        dims = [dim for dim, places in enumerate(found) if any(place.axis in block.hidden for place in places)]
        if len(dims) > 1:
            return None
        per = blocks[block]
        if dims:
            units = found[dims[0]]
            found[dims[0]] = [_own(x, block, one, per, spec.sizes) for one in range(block.count) for x in units]
        else:
            found.insert(0, [_chosen(block, one, per) for one in range(block.count)])
        contents[joined] = found
        stacks[joined] = Stack(names, dims[0] if dims else None, fused, block.count)
        unmatched |= {joined} if form.source in spec.unmatched else set()
    if sum(len(x) for x in members.values()) != sum(len(x.names) for x in stacks.values() if x.fused is None):
        return None
    return Symmetries(spec_of(contents, *_sizes_and_parts(spec, blocks), unmatched), stacks)


def _common_name(names: Sequence[str]) -> str:
    """The name that several have in common, with `*` where they differ."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns)
