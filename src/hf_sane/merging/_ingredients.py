"""Ingredients of a soup: checkpoints that are opened lazily, compared before averaging, and aligned while reading."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi, hf_hub_download
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._named_tensors import RenamedTensors
from hf_sane.core._types import StateDict
from hf_sane.merging._reconciliation import complete_config, reconcile, tied_names
from hf_sane.records._documents import read_document
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, parse_source, source_name
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import Permutation, PermutationSpec
from hf_sane.symmetry._transformers_models import transformers_spec
from hf_sane.tokenization._checkpoints import Source, as_checkpoint
from hf_sane.tokenization._lazy_checkpoints import LazyCheckpoint, open_checkpoint
from hf_sane.tokenization._loading import is_own_module

CONFIG_FILE = "config.json"
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
# Files that a soup copies from its first ingredient.
CARRIED_FILES = (
    *VOCABULARY_FILES,
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)
# Keys of a configuration that do not affect the network's function.
HARMLESS_KEYS = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "finetuning_task",
    "id2label",
    "initialization",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
Given = TypeVar("Given", bound=Source)


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint, whose tensors are read on access.

    Attributes:
        name: Name in reports and cards.
        tensors: Tensors by name, which are read on access if the checkpoint is a file.
        outlines: Tensors on the meta device, with names, shapes and dtypes.
        config: Content of its config.json; empty if unknown.
        vocabulary: Content of its tokenizer's files, by file name; empty if there are none.
        folder: Folder of its files; `None` in memory.
        spec: Symmetries for `permutation`.
        permutation: Permutation that is applied to every tensor while reading; `None` for none.
    """

    name: str
    tensors: Mapping[str, Tensor]
    outlines: StateDict
    config: Mapping[str, Any]
    vocabulary: Mapping[str, Any]
    folder: Path | None = None
    spec: PermutationSpec | None = None
    permutation: Permutation | None = None

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, aligned if the ingredient is; it must not be modified."""
        tensor = self.tensors[name]
        if self.spec is None or self.permutation is None:
            return tensor
        return self.spec.apply({name: tensor}, self.permutation)[name]


def open_ingredients(sources: Sequence[Source], *, names: Sequence[str] | None = None) -> list[Ingredient]:
    """Open checkpoints of one architecture for averaging.

    Only headers are read. Checkpoints whose average would be meaningless raise an error: those with different tensors
    or shapes, settings of the architecture (except dropout and initialisation), labels or vocabularies. Settings that
    a checkpoint lacks (such as the configuration of a single file) cannot be compared. Buffers without information may
    exist in some checkpoints only, and a weight that is stored once for two names may be stored twice in others, see
    `reconcile`.

    Args:
        sources: State dicts, modules, files, folders, shard indices, or Hub repo ids, also `repo@revision`; at least
            two.
        names: Names; by default the last part of a path, the repo id, or `ingredient_0`, ... Names that occur twice
            get a number.

    Raises:
        FileNotFoundError: If a file or repo does not exist.
        ValueError: If there are fewer than two sources, the number of names differs, or checkpoints are incompatible.
    """
    named = name_sources(sources, names, what="checkpoint")
    ingredients = _reconciled([_open(source, name) for name, source in named.items()])
    for other in ingredients[1:]:
        check_compatible(ingredients[0], other)
    return ingredients


def name_sources(sources: Sequence[Given], names: Sequence[str] | None, *, what: str) -> dict[str, Given]:
    """Sources of a soup by name, see [`open_ingredients`]; `what` is the word for one of them in messages."""
    if isinstance(sources, str | Path) or len(sources) < 2:
        got = f"the single source {str(sources)!r}" if isinstance(sources, str | Path) else len(sources)
        raise ValueError(f"expected a list of at least two {what}s, got {got}")
    if names is not None and len(names) != len(sources):
        raise ValueError(f"expected one name for each of {len(sources)} {what}s, got {len(names)}")
    given = list(names or [_default_name(source, i) for i, source in enumerate(sources)])
    unique = [f"{name}_{i}" if given.count(name) > 1 else name for i, name in enumerate(given)]
    return dict(zip(unique, sources, strict=True))


def check_compatible(first: Ingredient, other: Ingredient) -> None:
    """Raise an error if the average of two checkpoints would be meaningless.

    Raises:
        ValueError: If configuration, labels, vocabulary, tensor names, shapes or kinds of dtype differ.
    """
    ours, theirs = (_comparable(ingredient.config) for ingredient in (first, other))
    if differing := sorted(key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]):
        pairs = ", ".join(f"{key} {ours[key]!r} and {theirs[key]!r}" for key in differing)
        raise ValueError(f"{first.name} and {other.name} are of different architectures: {pairs}; average within one")
    for key in ("id2label", "label2id"):
        if key in first.config and key in other.config and first.config[key] != other.config[key]:
            raise ValueError(
                f"{first.name} and {other.name} have different labels ({key} {first.config[key]} and "
                f"{other.config[key]}): the average would mix up classes; train them on one labelling"
            )
    for file in sorted(first.vocabulary.keys() & other.vocabulary.keys()):
        if first.vocabulary[file] != other.vocabulary[file]:
            raise ValueError(
                f"{first.name} and {other.name} have different tokenizers ({file} differs), so their embeddings "
                "belong to different words; average models of one vocabulary"
            )
    if first.outlines.keys() != other.outlines.keys():
        lacking = [
            f"{len(names)} tensors are in {holder.name} only{f', such as {names[:3]}' if names else ''}"
            for holder, rest in ((first, other), (other, first))
            for names in [sorted(holder.outlines.keys() - rest.outlines.keys())]
        ]
        raise ValueError(f"{first.name} and {other.name} are of different architectures: {' and '.join(lacking)}")
    for name, outline in first.outlines.items():
        found = other.outlines[name]
        if outline.shape != found.shape:
            raise ValueError(
                f"{name!r} is {list(outline.shape)} in {first.name} and {list(found.shape)} in {other.name}; average "
                "checkpoints of one architecture"
            )
        if is_averaged(outline) != is_averaged(found):
            raise ValueError(
                f"{name!r} is {outline.dtype} in {first.name} and {found.dtype} in {other.name}; convert one"
            )


def refuse_reordered(ingredients: Sequence[Ingredient]) -> None:
    """Refuse to average copies of a network whose channels are in another order.

    Only the first matrix that differs is compared, so that little is read.

    Raises:
        ValueError: If it holds the same values in another order.
    """
    first = ingredients[0]
    matrices = [name for name, outline in first.outlines.items() if outline.ndim > 1 and is_averaged(outline)]
    for other in ingredients[1:]:
        pairs = ((first.tensor(name), other.tensor(name)) for name in matrices)
        a, b = next((pair for pair in pairs if not torch.equal(*pair)), (None, None))
        if a is not None and b is not None and torch.equal(a.flatten().sort().values, b.flatten().sort().values):
            raise ValueError(
                f"{first.name} and {other.name} are the same network with its channels in another order, whose plain "
                "average computes something else; align them (--align), or compare them with hf-sane diff"
            )


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that affect the network's function, including defaults that files omit."""
    if is_own_module(config):
        facts = {key: value for key, value in config.items() if key != "model_type"}  # which older folders lack
    else:
        facts = complete_config(config).to_dict() if config["model_type"] in CONFIG_MAPPING else dict(config)
    return {key: value for key, value in facts.items() if key not in HARMLESS_KEYS and "drop" not in key}


def is_averaged(tensor: Tensor) -> bool:
    """Whether a tensor holds weights, which are floating-point numbers, unlike counters, indices and masks.

    Raises:
        ValueError: If weights are 8-bit floats, which are quantised, and whose scales would have to be averaged, too.
    """
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        raise ValueError(f"cannot average quantised weights of dtype {tensor.dtype}; dequantise the checkpoints first")
    return tensor.is_floating_point() or tensor.is_complex()


def align_ingredients(
    ingredients: Sequence[Ingredient], spec: PermutationSpec, *, reference: int = 0
) -> list[Ingredient]:
    """Permute the channels of all ingredients to match one of them, which does not change their outputs.

    Networks that share an initialisation already match. Independent networks have different channel orders, and their
    plain average is no better than chance (Ainsworth et al. 2022, arXiv:2209.04836). Permutations are applied to one
    tensor at a time while reading; *finding* one needs the weights of two networks in float64.

    Args:
        ingredients: Ingredients of one architecture.
        spec: Its permutation symmetries.
        reference: Index of the ingredient that is not permuted.

    Returns:
        Ingredients whose tensors are aligned while reading.

    Raises:
        IndexError: If there is no such ingredient.
        ValueError: If the weights do not fit the spec or are not finite.
    """
    if not 0 <= reference < len(ingredients):
        raise IndexError(f"expected a reference from 0 to {len(ingredients) - 1}, got {reference}")
    fixed = dict(ingredients[reference].tensors)
    aligned = []
    for i, ingredient in enumerate(ingredients):
        if i == reference:
            aligned.append(ingredient)
            continue
        try:
            permutation = match_weights(spec, fixed, dict(ingredient.tensors))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"cannot align {ingredient.name} to {ingredients[reference].name}: {error.args[0]}"
            ) from error
        aligned.append(replace(ingredient, spec=spec, permutation=permutation))
    return aligned


def align_known(ingredients: list[Ingredient], config: Any, *, align: bool | None) -> list[Ingredient]:
    """Align ingredients if requested (their symmetries are then traced) or, by default, if they are of this library.

    Args:
        ingredients: Ingredients of one architecture.
        config: Their configuration.
        align: Whether to align; `None` for networks of this library only.

    Raises:
        TypeError: If alignment is requested and the symmetries cannot be traced.
    """
    is_own = isinstance(config, ZooConfig)
    if align is False or (align is None and not is_own):
        return ingredients
    # Transformers' files keep the tensor names of older versions.
    spec = permutation_spec(config) if is_own else transformers_spec(config, as_saved=True)
    return align_ingredients(ingredients, spec)


def _reconciled(ingredients: Sequence[Ingredient]) -> list[Ingredient]:
    """The ingredients, with the same names for the same tensors, see [`reconcile`]."""
    found = reconcile(
        [ingredient.tensors for ingredient in ingredients],
        [ingredient.outlines for ingredient in ingredients],
        lambda: tied_names(ingredients[0].config),
    )
    return [
        ingredient
        if list(names.items()) == [(name, name) for name in ingredient.outlines]
        else replace(
            ingredient,
            tensors=RenamedTensors(ingredient.tensors, names),
            outlines={name: ingredient.outlines[stored] for name, stored in names.items()},
        )
        for ingredient, names in zip(ingredients, found, strict=True)
    ]


def _default_name(source: Source, index: int) -> str:
    if isinstance(source, nn.Module | Mapping):
        return f"ingredient_{index}"
    return source_name(as_checkpoint(source).source)


def _open(source: Source, name: str) -> Ingredient:
    if isinstance(source, nn.Module | Mapping):
        tensors = open_checkpoint(source)
        facts: dict[str, Any] = {}
        if isinstance(source, PreTrainedModel):
            facts = json.loads(source.config.to_json_string(use_diff=False)) | {
                "architectures": [type(source).__name__]
            }
        outlines = {key: tensor.detach().to("meta") for key, tensor in tensors.items()}
        return Ingredient(name, tensors, outlines, facts, {})
    checkpoint = as_checkpoint(source)
    tensors, place = open_checkpoint(checkpoint), parse_source(checkpoint.source, revision=checkpoint.revision)
    if isinstance(place, HubRepo):
        files = _side_files(place, checkpoint.subfolder)
        folder = files[CONFIG_FILE].parent if CONFIG_FILE in files else None
    else:
        folder = place / (checkpoint.subfolder or "") if place.is_dir() else place.parent
        files = {file: folder / file for file in (CONFIG_FILE, *VOCABULARY_FILES) if (folder / file).exists()}
    config = read_document(files[CONFIG_FILE], expected="a configuration").mapping() if CONFIG_FILE in files else {}
    vocabulary = {file: _vocabulary(files[file]) for file in VOCABULARY_FILES if file in files}
    if isinstance(tensors, LazyCheckpoint):
        outlines = tensors.outlines
    else:
        outlines = {key: tensor.to("meta") for key, tensor in tensors.items()}
    return Ingredient(name, tensors, outlines, config, vocabulary, folder)


def _side_files(repo: HubRepo, subfolder: str | None) -> dict[str, Path]:
    """Configuration of a Hub repo and the files of its tokenizer and processor, downloaded."""
    present = patiently(HfApi().list_repo_files, repo.repo_id, revision=repo.revision)
    paths = {file: (PurePosixPath(subfolder or "") / file).as_posix() for file in (CONFIG_FILE, *CARRIED_FILES)}
    return {
        file: Path(patiently(hf_hub_download, repo.repo_id, path, revision=repo.revision))
        for file, path in paths.items()
        if path in present
    }


def _vocabulary(path: Path) -> Any:
    """The vocabulary in a tokenizer file, without truncation and padding, which change with every use."""
    if path.name != "tokenizer.json":
        return path.read_bytes()
    content = read_document(path, expected="a tokenizer").mapping()
    return {key: content.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
