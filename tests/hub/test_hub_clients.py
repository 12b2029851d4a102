"""Unmodified clients read what was pushed: without this library, tagged, sharded, streamed, offline."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch
from forks import run_in_fork
from hub_server import TOKEN, run_hub
from huggingface_hub import HfApi, constants

import hf_sane.zoo._dataset
from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.hub._push import plan_push
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._manifests import MANIFEST
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

ROOT = Path(__file__).parents[2]
# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

WITHOUT_LIBRARY = """
import sys

sys.modules["hf_sane"] = None  # as if it were not installed
import torch
from transformers import AutoModel, AutoModelForImageClassification

outputs = {}
for name, options in {
    "main": {"pretrained_model_name_or_path": "org/sane"},
    "tag": {"pretrained_model_name_or_path": "org/sane", "revision": "v1"},
    "shards": {"pretrained_model_name_or_path": "org/sharded"},
}.items():
    model, info = AutoModel.from_pretrained(**options, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    tokens = torch.linspace(-1, 1, 8 * 20).view(1, 8, 20)
    outputs[name] = model.encode_sequences(tokens, torch.zeros(8, 3, dtype=torch.long))
    outputs[f"{name} weights"] = model.state_dict()
for subfolder in ("", "network_1"):
    network = AutoModelForImageClassification.from_pretrained(
        "org/sampled", subfolder=subfolder, trust_remote_code=True
    )
    outputs[f"network {subfolder}"] = network(torch.ones(1, 1, 8, 8)).logits
try:
    AutoModel.from_pretrained("org/sane")
except ValueError as error:
    assert "sane" in str(error), error
else:
    raise AssertionError("code of a repository ran without being trusted")
torch.save(outputs, sys.argv[1])
"""
WITH_LIBRARY = """
import re
import sys
from pathlib import Path

import datasets
import torch
from huggingface_hub import hf_hub_download

from hf_sane import SANEFeatureExtractor, SANEModel, Zoo
from hf_sane.hub._publish import loaded_commit
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict

model = SANEModel.from_pretrained("org/sane")
commit = loaded_commit("org/sane", None)
assert len(commit) == 40 and commit != loaded_commit("org/sane", "v1"), commit
tokenizer = SANEFeatureExtractor.from_pretrained("org/sane")
network = tokenizer.encode("org/sampled")
assert network.tokens.shape[1] == 20
shapes = {name: tensor.shape for name, tensor in load_state_dict("org/sampled").items()}
assert {name: tensor.shape for name, tensor in read_meta_state_dict("org/sampled").items()} == shapes
zoo = Zoo.load("org/zoo", "mnist-cnn-s")
assert len(zoo.revision) == 40
for config in ("mnist-cnn-s", "usps-cnn-s"):
    loaded = datasets.load_dataset("org/zoo", config)
    assert {name: len(split) for name, split in loaded.items()} == {n: len(s) for n, s in zoo.splits.items()}
rows = datasets.load_dataset("org/zoo", "usps-cnn-s", split="train", streaming=True)
assert [row["run_id"] for row in rows] == zoo.splits["train"].run_ids
zoo.push_to_hub("org/copy", config_name="first")
Zoo.load("org/zoo", "usps-cnn-s").push_to_hub("org/copy", config_name="second")
for config in ("first", "second"):
    copy = Zoo.load("org/copy", config)
    assert torch.equal(copy.splits["test"].stacked_tokens(), zoo.splits["test"].stacked_tokens())
    assert copy.alignment is not None

model.push_to_hub("org/by-hand")
tokenizer.push_to_hub("org/by-hand")
again = SANEModel.from_pretrained("org/by-hand").state_dict()
assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
assert SANEFeatureExtractor.from_pretrained("org/by-hand").statistics == tokenizer.statistics

for repo_id, kind in {"org/sane": "model", "org/sampled": "model", "org/zoo": "dataset"}.items():
    card = Path(hf_hub_download(repo_id, "README.md", repo_type=kind)).read_text()
    (code,) = re.findall("```python\\n(.*?)```", card, flags=re.DOTALL)
    assert repo_id in code, code
    names = {}
    exec(code, names)
    assert names.keys() & {"decoded", "predicted", "tokens"}, names.keys()
print("all came back")
"""
PRIVATE = """
from transformers import AutoModel

try:
    AutoModel.from_pretrained("org/private")
except OSError as error:
    print(error)
"""


@pytest.fixture
def run(fresh_python, hub, tmp_path):
    """Run a client of the Hub; gives what it printed."""

    def run_client(code, *arguments, **options):
        return fresh_python(code, *arguments, env=hub.environment(tmp_path / "home", **options), cwd=tmp_path)

    return run_client


def new_model(seed):
    torch.manual_seed(seed)
    return SANEModel(
        SANEConfig(token_dim=20, hidden_size=24, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_zoo):
    """A Hub that holds a SANE with a tag, a sharded one, a private one, two networks and two zoos."""
    folder = tmp_path_factory.mktemp("artefacts")
    record = RunRecord(command="x", results={"test_accuracy": 0.5})
    networks = [build_model(cnn_digits()) for _ in range(2)]
    extractor = SANEFeatureExtractor(token_dim=20).fit(networks)
    with pytest.MonkeyPatch.context() as patch, run_hub() as server:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server takes plain uploads
        api = HfApi(endpoint=server.address, token=TOKEN)
        for seed in (1, 2):
            save_sane(folder / f"sane {seed}", new_model(seed), extractor, record)
            plan_push("model", folder / f"sane {seed}", "org/sane", api=api).push(api)
            if seed == 1:
                api.create_tag("org/sane", tag="v1")
        save_sane(folder / "sharded", new_model(3), extractor, record)
        for name in ("model.safetensors", MANIFEST):
            (folder / "sharded" / name).unlink()
        new_model(3).save_pretrained(folder / "sharded", max_shard_size="8KB")
        assert len(list((folder / "sharded").glob("model-*.safetensors"))) > 2
        plan_push("model", folder / "sharded", "org/sharded", api=api).push(api)
        plan_push("model", folder / "sane 1", "org/private", api=api).push(api, private=True)
        for index, network in enumerate(networks):
            save_network(folder / "sampled" / f"network_{index}", network, record)
        plan_push("samples", folder / "sampled", "org/sampled", api=api).push(api)
        for config in ("mnist-cnn-s", "usps-cnn-s"):
            tiny_zoo.save(folder / "zoo", config)
        plan_push("zoo", folder / "zoo", "org/zoo", api=api).push(api)
        server.networks = networks
        yield server


def test_models_open_without_this_library_and_again_without_the_hub(hub, run, tmp_path):
    run(WITHOUT_LIBRARY, tmp_path / "online.pt")
    answered = len(hub.log)
    run(WITHOUT_LIBRARY, tmp_path / "offline.pt", offline=True)
    assert len(hub.log) == answered
    online, offline = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("online", "offline"))
    for name, seed in (("main", 2), ("tag", 1), ("shards", 3)):
        expected = new_model(seed).state_dict()
        assert all(torch.equal(expected[key], online[f"{name} weights"][key]) for key in expected)
        assert torch.equal(online[name], offline[name])
    for subfolder, network in zip(("", "network_1"), hub.networks, strict=True):
        logits = network.eval()(torch.ones(1, 1, 8, 8)).logits
        torch.testing.assert_close(online[f"network {subfolder}"], logits)


def test_models_and_zoos_open_by_name_with_this_library(run):
    assert "all came back" in run(WITH_LIBRARY)


def test_a_private_repository_says_what_the_hub_says(run):
    message = run(PRIVATE, token=None)
    assert "is not a local folder and is not a valid model identifier" in message
    assert "private" in message
    assert "token" in message
    assert TOKEN not in message


def test_training_from_a_stream_takes_a_part_of_the_zoo(hub, tmp_path, tiny_zoo, monkeypatch):
    """`accelerate launch scripts/pretrain.py --streaming` on a zoo of many row groups: most of it stays on the Hub."""
    monkeypatch.setattr(hf_sane.zoo._dataset, "MAX_ROWS_PER_GROUP", 100)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    splits = {
        name: split.select([index % len(split) for index in range(8_000 if name == "train" else 40)])
        for name, split in tiny_zoo.splits.items()
    }
    facts = {name: {"runs": 1, "networks": len(split), "test_accuracy": 0.5} for name, split in splits.items()}
    large = hf_sane.zoo._dataset.Zoo(splits, replace(tiny_zoo.facts, splits=facts)).with_alignment(tiny_zoo.alignment)
    large.save(tmp_path / "large")
    api = HfApi(endpoint=hub.address, token=TOKEN)
    plan_push("zoo", tmp_path / "large", "org/large", api=api).push(api)
    whole = (tmp_path / "large/data/train-00000-of-00001.parquet").stat().st_size
    model = json.dumps({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4})
    flags = "--streaming --stream_sample 20 --stream_buffer 20 --eval_models 8 --max_steps 3 --batch_size 4"
    settings = "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"

    def launch_script():
        os.environ |= {**hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        os.chdir(tmp_path)
        sys.argv = ["accelerate launch", *settings.split(), str(ROOT / "scripts/pretrain.py"), "--zoo", "org/large"]
        sys.argv += [*flags.split(), "--output_dir", str(tmp_path / "run"), "--log_with", "none", "--model", model]
        launch.main()

    run_in_fork(launch_script)
    assert 0 < hub.sent(r"org/large/resolve/.*train-.*parquet") < whole / 2
    assert not [path for path in (tmp_path / "home").rglob("*") if path.name.endswith((".parquet", ".arrow"))]
    record = RunRecord.load(tmp_path / "run/model/run.json")
    assert record.data["train_models"] == [8_000]
    assert record.data["train_models_in_memory"] == [20]
    assert re.fullmatch("[0-9a-f]{40}", record.data["revisions"][0])
    card = (tmp_path / "run/model/README.md").read_text()
    assert "- org/large" in card
