"""Save sampled networks as ordinary Transformers models, with their provenance."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_sane.core._kde import BandwidthRule, SamplingMode
from hf_sane.networks._modules import find_architecture
from hf_sane.records._documents import read_document
from hf_sane.records._outputs import check_finished
from hf_sane.sampling._generation import BandwidthUnit
from hf_sane.tokenization._loading import OWN_MODULE

PROVENANCE_FILE = "provenance.json"
OWN_LIBRARY = "pytorch"  # library in configurations of own modules
NETWORK = "network"  # which manifests verify
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a sampled network, with which it can be drawn again and its novelty can be judged.

    Attributes:
        method: `"kde"`, `"subsampled"`, `"bootstrapped"`, `"prior"`, or the name of a baseline.
        sane_model: Folder name or repo id of the autoencoder.
        sane_revision: Commit of the autoencoder on the Hub.
        sane_subfolder: Subfolder of the autoencoder, if any.
        zoo: Folder name or repo id of the anchors' zoo.
        zoo_revision: Commit of the zoo on the Hub.
        anchors: Runs (or `run@epoch`) of the anchors.
        seed: Random seed of the random generator.
        index: Index of the network among those kept, best first.
        bandwidth: Kernel width, or its rule.
        bandwidth_unit: Unit of the bandwidth.
        mode: Sampling mode.
        num_candidates: Number of networks drawn, of which the best were kept.
        validation_accuracy: Accuracy on the images used for selection, hence biased upward.
        test_accuracy: Accuracy on test images, before any training.
        scores: The same for other metrics, such as `{"validation_f1": 0.8, "test_f1": 0.7}`.
        nearest_training_distance: See `diversity.nearest_training_distance`.
        notes: Anything else, as JSON.
    """

    method: str
    sane_model: str = ""
    sane_revision: str | None = None
    sane_subfolder: str | None = None
    zoo: str = ""
    zoo_revision: str | None = None
    anchors: tuple[str, ...] = ()
    seed: int | None = None
    index: int | None = None
    bandwidth: float | BandwidthRule | None = None
    bandwidth_unit: BandwidthUnit | None = None
    mode: SamplingMode | None = None
    num_candidates: int | None = None
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    nearest_training_distance: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def save(self, partial: Path) -> None:
        """Write `provenance.json` to a folder from [`output_folder`]."""
        (partial / PROVENANCE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Provenance":
        """Read `provenance.json`.

        Raises:
            FileNotFoundError: If there is no such file.
            InvalidFileError: If the folder is incomplete, or files were removed or changed.
            InvalidFileError: If it was not written by [`save`].
        """
        check_finished(folder)
        path = Path(folder) / PROVENANCE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {PROVENANCE_FILE} in {folder}; expected the folder of a sampled network")
        remedy = "sample the network again"
        return cls(**read_document(path, expected="the provenance of a network", remedy=remedy).fields_of(cls))


def save_module(partial: Path, model: nn.Module) -> None:
    """Write a network with `save_pretrained` if it has that method, otherwise its tensors and class name.

    Args:
        partial: Folder from [`output_folder`].
        model: A Transformers model, or any module, which `MyModule().load_state_dict(load_file(...))` restores, and
            `MyModule.from_pretrained(...)`, if it is a `PyTorchModelHubMixin`.
    """
    save = getattr(model, "save_pretrained", None)
    if callable(save):
        save(partial)
    if not (partial / WEIGHTS).is_file():
        # Tied weights under all their names, as load_state_dict() expects them.
        tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
        save_file(tensors, partial / WEIGHTS)
    if not (partial / CONFIG).is_file():
        named = {"architectures": [type(model).__name__], "library_name": OWN_LIBRARY, **module_arguments(model)}
        named |= {"model_type": OWN_MODULE}  # for the Auto classes, once the module is registered
        (partial / CONFIG).write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")


def module_arguments(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments with which the class of a registered module makes networks of this shape."""
    known = find_architecture(model)
    return {} if known is None else dict(known.arguments)


def check_saved(model: nn.Module, folder: Path) -> nn.Module:
    """Load a network from the folder to which it was just saved, in evaluation mode.

    Raises:
        RuntimeError: If the loaded network differs from the saved one.
    """
    if isinstance(model, PreTrainedModel):
        loaded: nn.Module = type(model).from_pretrained(folder)
    else:
        loaded = copy.deepcopy(model)
        loaded.load_state_dict(load_file(folder / WEIGHTS))
    loaded = loaded.eval()
    written, read = model.state_dict(), loaded.state_dict()
    if differing := [
        name
        for name in written.keys() | read.keys()
        if name not in written or name not in read or not torch.equal(written[name], read[name])
    ]:
        raise RuntimeError(
            f"the loaded network differs from the saved one in tensors {sorted(differing)}; is the disk full?"
        )
    return loaded
