"""Symmetries of the networks in a zoo, for this library's architectures and for traceable imported ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_sane.core._layout import Layout
from hf_sane.networks._fields import field_architecture
from hf_sane.networks._modules import find_architecture, registered_names
from hf_sane.records._errors import name_some
from hf_sane.symmetry._experts import Symmetries
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry._selection import select_tensors
from hf_sane.symmetry._transformers_models import transformers_spec, transformers_symmetries
from hf_sane.tokenization._loading import is_own_module
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._facts import ZooFacts

Specs = Mapping[str, PermutationSpec]
UNKNOWN = "symmetries unknown"  # reason why the dimensions of a network are fixed


class UnknownSymmetriesError(ValueError):
    """Nothing describes the symmetries of an imported network."""


class NoSymmetriesError(UnknownSymmetriesError):
    """The code of networks is known, but no symmetry of it can be proven."""


def network_spec(
    facts: ZooFacts,
    architecture: str,
    layout: str,
    *,
    alignment: Alignment | None = None,
    specs: Specs | None = None,
) -> PermutationSpec:
    """Permutation symmetries of the networks of one architecture and layout.

    Args:
        facts: Facts of the zoo.
        architecture: Value of the `architecture` column.
        layout: Value of the `layout` column.
        alignment: Alignment of the zoo, whose specs are used if there are any.
        specs: Specs by architecture or layout, for networks that cannot be traced.

    Raises:
        UnknownSymmetriesError: If an imported network cannot be traced and no spec is given.
        NoSymmetriesError: If a registered module cannot be traced, or has no symmetry.
        ValueError: If a spec does not fit the network.
    """
    structure = facts.parsed_layouts[layout]
    for key in (layout, architecture):
        if specs is not None and key in specs:
            return fit_spec(specs[key], structure)
    if alignment is not None and (known := alignment.specs.get(alignment.key(architecture, layout))) is not None:
        return known
    config = facts.parsed_architectures[architecture]
    if config is not None:
        return permutation_spec(config)
    registered = find_architecture(structure) or field_architecture(
        facts.architectures[architecture]["config"], structure
    )
    if registered is not None and registered.example_inputs is not None:
        try:
            spec = registered.permutations_of(structure.tensor_names)
        except ValueError as error:
            raise NoSymmetriesError(str(error).partition("\n")[0]) from error
        return fit_spec(spec, structure)
    try:
        return imported_spec(facts.architectures[architecture]["config"], structure)
    except (TypeError, ValueError) as error:
        others = f"; the module {name_some(registered_names())} has other tensors" if registered_names() else ""
        reason, missing, module, code = f"{error}{others}", "their code", "MyModule", "--module my_file.py:MyModule "
        if registered is not None:
            module, code = registered.name, ""
            reason, missing = f"tracing them requires example inputs of the module {module}", "the shape of its inputs"
        raise UnknownSymmetriesError(
            f"the symmetries of the imported networks {architecture!r} (layout {layout!r}) are unknown "
            f"({reason}); pass {missing}: hf_sane.register_architecture({module}, example_inputs), or "
            f"{code}--module-input 1,28,28; or use its networks without alignment"
        ) from error


def fixed_spec(layout: Layout) -> PermutationSpec:
    """A spec that permutes nothing, for networks whose symmetries are unknown."""
    sizes = {tensor.name: len(tensor.shape) for layer in layout.layers for tensor in layer.tensors}
    sizes |= {name: tensor.ndim for name, tensor in layout.template.items()}
    sizes |= {name: sizes[first] for name, first in layout.aliases.items()}
    axes = {name: (None,) * sizes[name] for name in layout.tensor_names}
    return PermutationSpec(axes, {}, fixed={name: dict.fromkeys(range(len(a)), UNKNOWN) for name, a in axes.items()})


def imported_spec(settings: Mapping[str, Any], layout: Layout) -> PermutationSpec:
    """Trace imported networks from the configuration in their repository.

    Args:
        settings: Content of `config.json`.
        layout: Layout of the networks.

    Raises:
        TypeError: If Transformers has no such model, or its inputs are neither images nor tokens.
        ValueError: If there is no Transformers configuration, or the model cannot be traced or has different tensors.
    """
    return fit_spec(transformers_spec(_config(settings), as_saved=True), layout)


def imported_symmetries(settings: Mapping[str, Any], layout: Layout) -> Symmetries:
    """Like [`imported_spec`], but the experts of a mixture may also be exchanged."""
    config = _config(settings)
    fit_spec(transformers_spec(config, as_saved=True), layout)  # the layout has no other tensors
    found = transformers_symmetries(config)
    return found.select({name: name for name in found.names if name in layout.tensor_names})


def _config(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of a Transformers model."""
    model_type = str(settings.get("model_type"))
    if model_type not in CONFIG_MAPPING or is_own_module(settings):
        found = f"model_type={model_type!r}" if "model_type" in settings else "none"
        raise ValueError(f"expected a Transformers configuration next to the weights, got {found}")
    return CONFIG_MAPPING[model_type].from_dict(dict(settings))


def fit_spec(spec: PermutationSpec, layout: Layout) -> PermutationSpec:
    """Restrict a spec to the tensors of a layout, in their order, since files omit tied tensors and some buffers.

    Integer tensors that only the layout has, such as position indices, are not permuted.

    Raises:
        ValueError: If the layout has weights that the spec lacks, or their shapes differ.
    """
    shapes = {tensor.name: tensor.shape for layer in layout.layers for tensor in layer.tensors}
    shapes |= {name: tuple(tensor.shape) for name, tensor in layout.template.items()}
    shapes |= {name: shapes[first] for name, first in layout.aliases.items()}
    integers = {name for name, tensor in layout.template.items() if not tensor.is_floating_point()}
    if foreign := [name for name in layout.tensor_names if name not in spec.axes and name not in integers]:
        raise ValueError(
            f"{len(foreign)} tensors of the network are unknown to the permutation spec, the first of them "
            f"{foreign[:3]}; was it made for another network?"
        )
    known = select_tensors(spec, {name: name for name in layout.tensor_names if name in spec.axes})
    axes = {name: known.axes.get(name, (None,) * len(shapes[name])) for name in layout.tensor_names}
    fitted = dataclasses.replace(known, axes=axes)
    fitted.check_tensors({name: torch.empty(shapes[name], device="meta") for name in layout.tensor_names})
    return fitted
