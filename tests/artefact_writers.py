"""Every function that saves an artefact, with something small to save."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.core._adapters import save_adapter
from hf_sane.hub._adapters import save_network_adapter
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.hub._soups import save_adapter_soup, save_soup
from hf_sane.merging._adapters import AdapterSoup
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._probes import RidgeProbe
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._export import Provenance
from hf_sane.sampling._finetuning import add_network_lora
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

RECORD = RunRecord(command="x", results={"ingredients": {"a": {"weight": 1.0, "held_out_score": 0.5}}})
PROVENANCE = Provenance("subsampled", sane_model="org/sane", anchors=("7",), seed=3)
CONFIG = SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)


def network():
    torch.manual_seed(0)
    return build_model(cnn_digits())


def sane(folder):
    torch.manual_seed(0)
    save_sane(folder, SANEModel(CONFIG), SANEFeatureExtractor(token_dim=20).fit([network()]), RECORD)


def adapter_soup():
    tensors = {"base_model.model.fc.lora_A.weight": torch.ones(1, 2)}
    return AdapterSoup(tensors, {"peft_type": "LORA", "base_model_name_or_path": "org/base"}, {})


def adapter(folder):
    base = network()
    save_adapter(add_network_lora(deepcopy(base), rank=2), folder, base_model="org/base", base=base)


def network_adapter(folder):
    base = network()
    save_network_adapter(folder, add_network_lora(deepcopy(base), rank=2), base, RECORD, base_model="org/base")


def probe(folder):
    values = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    RidgeProbe.fit(values, values[:, 0], validation_features=values, validation_targets=values[:, 0]).save_pretrained(
        folder
    )


WRITERS: dict[str, Callable[[Path], None]] = {
    "save_sane": sane,
    "save_network": lambda folder: save_network(folder, network(), RECORD, provenance=PROVENANCE),
    "save_network with code": lambda folder: save_network(folder, network(), RECORD, include_code=True),
    "save_soup": lambda folder: save_soup(folder, network(), RECORD),
    "save_adapter_soup": lambda folder: save_adapter_soup(folder, adapter_soup(), cnn_digits(), RECORD),
    "AdapterSoup.save": lambda folder: adapter_soup().save(folder),
    "save_adapter": adapter,
    "save_network_adapter": network_adapter,
    "RidgeProbe.save_pretrained": probe,
}
