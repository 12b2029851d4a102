"""`repo@revision`, `--subfolder` and `--variant`: every verb that reads networks or adapters has them."""

import json
from dataclasses import fields

import pytest
import torch
import typer
from huggingface_hub import HfApi
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cli.app import app
from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.merging._adapters import average_adapters, open_adapters
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.embed import embed
from hf_sane.workflows.finetune import finetune
from hf_sane.workflows.import_zoo import import_zoo
from hf_sane.workflows.regions import RegionsSettings, map_regions
from hf_sane.workflows.sample import SampleSettings, sample
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.search import index_networks
from hf_sane.workflows.soup import soup
from hf_sane.zoo._dataset import Zoo

WHICH = {"subfolder": "sub/part", "variant": "fp16"}
OPTIONS = ["--subfolder", "sub/part", "--variant", "fp16"]
REPOS = ["org/net-0@v1", "org/net-1@v1"]
ADAPTERS = ["org/lora-0@v1", "org/lora-1@v1"]
WRONG = save({"wrong": torch.ones(2, 2)})

# Verbs without the options, and why. A SANE and a zoo are repositories of their own; both take repo@revision.
WITHOUT = {
    "explore": "takes zoos, and whole folders of checkpoints",
    "pretrain": "reads zoos and a SANE",
    "linear": "reads zoos and a SANE",
    "probe": "reads a zoo and a SANE",
    "compare": "reads a zoo and a SANE",
    "reconstruct": "reads zoos and a SANE",
    "start": "reads a SANE and images",
    "push": "sends whole outputs",
    "pull": "fetches whole repositories",
    "demo": "builds its own networks",
    "doctor": "reads no networks",
    "index": "reads zoos and folders of many networks",
    "zoo build": "trains its own networks",
    "zoo fit": "fits its own networks",
    "zoo mix": "reads zoos",
    "zoo align": "reads a zoo",
    "zoo show": "reads a zoo",
    "zoo structure": "reads a zoo",
}


def options_of_verbs():
    """`{verb: names of its options}`, of all verbs of the program."""
    found = {}
    for group, verbs in (("", VERBS), ("zoo ", ZOO_VERBS)):
        for verb in verbs:
            settings, _ = verb.load()
            found[group + verb.name] = {field.name for field in fields(settings)}
    for name, command in typer.main.get_command(app).commands.items():
        if name not in found and name != "zoo":
            found[name] = {parameter.name for parameter in command.params}
    return found


def test_every_verb_has_the_options_or_a_reason():
    found = options_of_verbs()
    with_options = {verb for verb, names in found.items() if names >= {"subfolder", "variant"}}
    assert with_options == {
        "info",
        "analyze",
        "diff",
        "lineage",
        "search",
        "embed",
        "sample",
        "finetune",
        "soup",
        "regions",
        "scan",
        "zoo import",
    }
    assert found.keys() - with_options == WITHOUT.keys()
    assert not any(names & {"subfolder", "variant"} for verb, names in found.items() if verb in WITHOUT)


def publish(hub, name, files):
    """What is meant lies in a subfolder, as a variant, at a tag; wherever else one could look lies another file."""
    inside = {f"sub/part/{path}": content for path, content in files.items()}
    plain = {path.replace(".fp16", ""): WRONG for path in files if path.endswith(".safetensors")}
    wrong = {**plain, **{f"sub/part/{path}": content for path, content in plain.items()}}
    hub.storage.add_files("models", name, {**inside, **wrong})
    HfApi().create_tag(name, tag="v1")
    hub.storage.add_files("models", name, {path: WRONG for path in inside if path.endswith(".safetensors")})


@pytest.fixture
def networks(local_hub):
    """Two networks, as they are in the repositories of `REPOS`."""
    found = []
    for index in range(2):
        torch.manual_seed(index)
        model = build_model(cnn_digits()).eval()
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        files = {"model.fp16.safetensors": save(weights), "config.json": model.config.to_json_string().encode()}
        publish(local_hub, f"org/net-{index}", files)
        found.append(model)
    return found


@pytest.fixture
def adapters(local_hub, tmp_path):
    """Folders with the two adapters of `ADAPTERS`."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]}
    text = json.dumps(config | {"base_model_name_or_path": "org/base"})
    generator = torch.Generator().manual_seed(0)
    folders = []
    for index in range(2):
        factors = {
            f"base_model.model.fc.lora_{side}.weight": torch.randn(shape, generator=generator)
            for side, shape in (("A", (2, 6)), ("B", (5, 2)))
        }
        folder = tmp_path / f"lora {index}"
        folder.mkdir()
        save_file(factors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(text)
        files = {"adapter_model.fp16.safetensors": save(factors), "adapter_config.json": text.encode()}
        publish(local_hub, f"org/lora-{index}", files)
        folders.append(folder)
    return folders


@pytest.fixture
def sane(networks):
    torch.manual_seed(0)
    extractor = SANEFeatureExtractor(token_dim=73).fit(networks)
    config = SANEConfig(token_dim=73, hidden_size=16, latent_dim=8, num_hidden_layers=1, window_size=32)
    return SANE(SANEModel(config).eval(), extractor)


def run_verb(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def save_local(networks, folder):
    return [str(model.save_pretrained(folder / str(i)) or folder / str(i)) for i, model in enumerate(networks)]


def test_info_and_analyze(networks, tmp_path):
    (here, _) = save_local(networks, tmp_path)
    for verb, options in (("info", ()), ("analyze", ("--min-values", 3, "--num-bootstrap", 0))):
        local = json.loads(run_verb(verb, here, *options, "--json").stdout)
        remote = json.loads(run_verb(verb, REPOS[0], *OPTIONS, *options, "--json").stdout)
        assert remote["layers"] == local["layers"] != []


def test_scan_diff_lineage_and_search(networks, tmp_path):
    index_networks(save_local(networks, tmp_path), tmp_path / "known")
    (scan,) = json.loads(run_verb("scan", REPOS[0], *OPTIONS, "--json").stdout)["scans"]
    assert scan["weights"] == sum(x.numel() for x in networks[0].state_dict().values())
    told = json.loads(run_verb("diff", *REPOS, *OPTIONS, "--json").stdout)
    assert {x["name"] for x in told["tensors"]} == networks[0].state_dict().keys()
    trees = json.loads(run_verb("lineage", *REPOS, *OPTIONS, "--json").stdout)
    assert trees["roots"] == REPOS
    for repo, place in zip(REPOS, ("0", "1"), strict=True):
        found = json.loads(run_verb("search", repo, *OPTIONS, "--index", tmp_path / "known", "--json").stdout)
        assert (found["neighbours"][0]["source"], found["neighbours"][0]["likeness"]) == (
            str(tmp_path / place),
            "equal",
        )


def test_embed(networks, sane, tmp_path):
    here = embed(save_local(networks, tmp_path), sane).splits["train"]
    there = embed(REPOS, sane, **WHICH).splits["train"]
    assert there["checkpoint"] == REPOS
    assert there["mean"] == here["mean"]
    assert there["mean"][0] != there["mean"][1]


def test_soup_of_networks(networks, tmp_path):
    run_verb("soup", *REPOS, *OPTIONS, "--no-align", "--output", tmp_path / "soup")
    made = AutoModelForImageClassification.from_pretrained(tmp_path / "soup").state_dict()
    first, second = (model.state_dict() for model in networks)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


def test_soup_of_adapters(adapters, tmp_path):
    run_verb("soup", *ADAPTERS, *OPTIONS, "--output", tmp_path / "soup")
    made = load_file(tmp_path / "soup" / "adapter_model.safetensors")
    expected = average_adapters(open_adapters(adapters), [0.5, 0.5]).tensors
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())
    alone = soup(ADAPTERS, **WHICH)
    assert alone.record.arguments["subfolder"] == "sub/part"


def test_regions_of_adapters(adapters, tmp_path):
    local = map_regions({"cats": [str(adapters[0])], "dogs": [str(adapters[1])]}, plots=False)
    pairs = [
        option
        for index, label in enumerate(("cats", "dogs"))
        for option in ("--adapter", f"{label}={ADAPTERS[index]}")
    ]
    told = json.loads(
        run_verb("regions", *pairs, *OPTIONS, "--no-plots", "--output", tmp_path / "map", "--json").stdout
    )
    assert told["distances"] == local.record.results["distances"]
    with pytest.raises(ValueError, match="--subfolder and --variant are for adapters"):
        RegionsSettings(zoo=["org/zoo"], plots=False, output=None, subfolder="a")


def test_finetune(networks, digits):
    options = {"epochs": 1, "train_limit": 64, "scratch": False}
    here, there = (finetune(given, digits, **options, **which) for given, which in ((networks, {}), (REPOS, WHICH)))
    assert there.names == REPOS
    assert there.record.arguments["variant"] == "fp16"
    assert all(torch.equal(tensor, there.stack.tensors[name]) for name, tensor in here.stack.tensors.items())


def test_sample(networks, sane, digits):
    options = {"images": digits, "num_samples": 2, "num_candidates": 4, "bandwidth": [0.1]}
    here, there = (sample(given, sane, **options, **which) for given, which in ((networks, {}), (REPOS, WHICH)))
    assert {name for origin in there.provenance for name in origin.anchors} == set(REPOS)
    assert all(torch.equal(tensor, there.stack.tensors[name]) for name, tensor in here.stack.tensors.items())
    with pytest.raises(ValueError, match=r"--subfolder and --variant are for networks \(--anchors\), got a zoo"):
        SampleSettings(sane="org/sane", zoo="org/zoo", output=None, variant="fp16")


def test_zoo_import(networks, tmp_path):
    split = ("--split-shares", "1,0,0", "--token-dim", 73)
    told = run_verb("zoo", "import", *REPOS, *OPTIONS, *split, "--output", tmp_path / "zoo", "--json")
    assert json.loads(told.stdout)
    zoo = import_zoo(repos=REPOS, **WHICH, output=tmp_path / "again", split_shares=[1, 0, 0], token_dim=73)
    for found in (Zoo.load(tmp_path / "zoo"), zoo):
        rows = found.splits["train"]
        assert list(rows.column("file")) == ["sub/part/model.fp16.safetensors"] * 2
        for index, model in enumerate(networks):
            read = rows.state_dict(rows.run_ids.index(REPOS[index]))
            assert all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())
