"""Zoos of a user's own module: trained stacked as each network would be alone, continued, refused, found again."""

import json
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import hf_sane
from hf_sane.merging._swa import train_stacked_swa
from hf_sane.networks import _modules
from hf_sane.networks._batchnorm import condition_batch_norm
from hf_sane.networks._hyperparameters import HyperParameters, image_order
from hf_sane.networks._images import ImageData, load_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.workflows.build_zoo import BuildZooSettings
from hf_sane.workflows.judging import recorded_texts
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings

WIDTH = {"width": 6}
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CODE = '''
from torch import nn


class Own(nn.Module):
    """Group and batch normalisation, a grouped convolution, tied and frozen weights, a second output head."""

    def __init__(self, width=4, drop=0.0, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2)
        self.norm = nn.GroupNorm(2, width)
        self.grouped = nn.Conv2d(width, width, 2, groups=2)
        self.batch_norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(drop)
        self.mix = nn.Linear(width, width)
        self.again = self.mix
        self.frozen = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.parity = nn.Linear(width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        hidden = self.grouped(self.norm(self.stem(images)).relu()).relu()
        hidden = self.drop(self.batch_norm(hidden)).mean((2, 3))
        hidden = hidden + self.again(self.mix(self.frozen(hidden)).tanh())
        return {"parity": self.parity(hidden), "logits": self.head(hidden)}
'''


class Recurrent(nn.Module):
    """Reads an image row by row: nothing that `torch.vmap` could run."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        return self.head(self.norm(self.gru(images[:, 0])[0][:, -1])), None


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_modules, "_REGISTERED", {})


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "own.py"
    path.write_text(CODE)
    return f"{path}:Own"


@pytest.fixture(scope="module")
def few(digits) -> ImageData:
    parts = {split: digits.split(split) for split in ("train", "validation", "test")}
    limits = {"train": 64, "validation": 40, "test": 40}
    images = {f"{split}_images": part[0][: limits[split]] for split, part in parts.items()}
    labels = {f"{split}_labels": part[1][: limits[split]] for split, part in parts.items()}
    return ImageData("few digits", **images, **labels, num_classes=10)


def settings(module, **given):
    usual = {"num_models": 3, "epochs": 1, "group_size": 2, "optimizers": ["adam", "sgd"], "progress_bar": False}
    usual |= {"learning_rate": [0.01, 0.05], "weight_decay": [0.01], "data_fraction": [0.5, 1.0], "batch_size": 16}
    return ZooSettings(**{"module": module, **usual, **given})


def trained_alone(make, split, index: int, data: ImageData) -> nn.Module:
    """As anybody would train it with PyTorch, on the images of a run in their order."""
    run = {name: split.column(name)[index].item() for name in ("seed", "learning_rate", "weight_decay")}
    torch.manual_seed(run["seed"])
    network, is_adam = make().train(), split.column("optimizer")[index] == "adam"
    kind = torch.optim.Adam if is_adam else partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(network.parameters(), lr=run["learning_rate"], weight_decay=run["weight_decay"])
    fraction, count = float(split.column("data_fraction")[index]), len(data.train_images)
    for chosen in image_order(run["seed"], 1, count, fraction, count).reshape(-1, 16):
        optimizer.zero_grad()
        output = network(data.train_images[chosen])
        logits = output["logits"] if isinstance(output, dict) else output[0]
        nn.functional.cross_entropy(logits, data.train_labels[chosen]).backward()
        optimizer.step()
    return network.eval()


def check_runs(zoo: Zoo, make, data: ImageData) -> None:
    for split in zoo.splits.values():
        last = split.at_epoch(1)
        for index in range(len(last)):
            for name, tensor in trained_alone(make, last, index, data).state_dict().items():
                torch.testing.assert_close(last.state_dict(index)[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def built(own, few, tmp_path_factory) -> Zoo:
    return build_zoo(
        settings(own, module_args=WIDTH, num_models=4, seed=2), few, tmp_path_factory.mktemp("zoo") / "built"
    )


def test_runs_are_trained_as_each_would_be_alone(built, own, few):
    zoo, folder = built, Path(built.source)
    make = _modules.load_module(own, WIDTH)
    _modules.register_architecture(make)
    check_runs(zoo, make, few)
    split = zoo.splits["train"]
    torch.manual_seed(int(split.column("seed")[0]))
    start = make().state_dict()
    assert all(torch.equal(split.at_epoch(0).state_dict(0)[name], tensor) for name, tensor in start.items())
    network = split.model(1)
    with torch.no_grad():
        answers = network(few.test_images)["logits"].argmax(1)
    assert (answers == few.test_labels).float().mean().item() == pytest.approx(split.column("test_accuracy")[1])
    assert network.mix.weight is network.again.weight
    assert zoo.alignment is not None  # traced with the images
    assert split.column("initialization")[0] is None
    card = (folder / "README.md").read_text()
    assert "- architecture: module of its authors: Own, width 6" in card
    assert "hf_sane.register_architecture" in card
    with pytest.raises(ValueError, match="other settings of layout, module_args: expected"):
        build_zoo(settings(own, num_models=4, seed=2), few, folder)
    _modules._REGISTERED.clear()
    with pytest.raises(ValueError, match="pass its code"):
        split.model(0)


def test_its_networks_are_sampled_conditioned_averaged_and_mapped(built, own, few, tmp_path):
    make = _modules.load_module(own, WIDTH)
    architecture = _modules.register_architecture(make, torch.zeros(1, 1, 8, 8))
    networks = [split.model(1) for split in built.splits.values()]
    extractor = hf_sane.SANEFeatureExtractor(width := built.splits["train"].layout(0).token_dim).fit(networks)
    config = hf_sane.SANEConfig(token_dim=width, window_size=32, latent_dim=4, **SMALL)
    sane = hf_sane.SANE(hf_sane.SANEModel(config).eval(), extractor)
    drawn = hf_sane.sample(networks, sane, images=few, num_samples=1, num_candidates=3, bandwidth=0.1, condition=False)
    drawn.save_pretrained(tmp_path / "drawn")
    mine = make()
    mine.load_state_dict(load_file(tmp_path / "drawn/network_0/model.safetensors"))
    with torch.no_grad():
        answers = mine.eval()(few.test_images)["logits"].argmax(1)
    assert (answers == few.test_labels).float().mean().item() == pytest.approx(drawn.provenance[0].test_accuracy)
    tuned = hf_sane.finetune(drawn, few, epochs=1, scratch=False)[0]
    assert torch.equal(tuned.frozen.weight, mine.frozen.weight)
    assert torch.equal(tuned.parity.weight, mine.parity.weight)
    assert not torch.equal(tuned.mix.weight, mine.mix.weight)

    stack = StackedNetworks.from_state_dicts(architecture.structure, [network.state_dict() for network in networks])
    plan = HyperParameters.repeat(range(len(networks)), learning_rate=0.01)
    conditioned = condition_batch_norm(stack, few.train_images, num_batches=2).model(0)  # all images, once
    with torch.no_grad():
        hidden = conditioned.grouped(conditioned.norm(conditioned.stem(few.train_images)).relu()).relu()
    torch.testing.assert_close(conditioned.batch_norm.running_mean, hidden.mean((0, 2, 3)))
    swa = train_stacked_swa(stack, few, plan, cycles=2, num_batches=2)
    ends = [
        snapshot.tensors["mix.weight"]
        for snapshot in train_stacked(stack.config, stack.tensors, few, plan, epochs=2, keep_epochs=[1, 2])
    ]
    torch.testing.assert_close(swa.averaged.tensors["mix.weight"], sum(ends) / 2)
    torch.testing.assert_close(swa.averaged.tensors["again.weight"], swa.averaged.tensors["mix.weight"])

    averaged = hf_sane.soup(networks, images=few, condition=True, condition_batches=2)
    torch.testing.assert_close(
        averaged.model.stem.bias, sum(network.stem.bias for network in networks) / len(networks)
    )
    found = hf_sane.map_regions(built, label=["optimizer"], align=False, plots=False, num_points=2, evaluate=steepness)
    finals = [split.at_epoch(1) for split in built.splits.values()]
    chosen = [steepness(s.model(i)) for s in finals for i in range(len(s)) if s.column("optimizer")[i] == "adam"]
    assert found.scores["optimizer: adam"].corners.tolist() == pytest.approx(chosen)


def test_the_verbs_build_pretrain_probe_sample_and_finetune(own, tmp_path, hf_sane_command):
    """The whole road on a zoo of a module that only its file knows."""
    module = ("--module", own, "--module-args", json.dumps(WIDTH))
    few = ("--images", "digits", "--train-limit", 32)
    grid = ("--num-models", 6, "--epochs", 1, "--split-shares", "0.5,0.17,0.33", "--learning-rate", "0.01,0.1")
    hf_sane_command("zoo", "build", *module, *few, *grid, "--output", tmp_path / "zoo")
    split = Zoo.load(tmp_path / "zoo").splits["train"].final_epochs()
    images, labels = load_images("digits", train_limit=32).split("test")
    measured = split.networks().evaluate(images, labels)[1]
    np.testing.assert_allclose(measured, split.column("test_accuracy"), atol=1e-6)
    assert split.alignment is not None  # by symmetries that were traced with the images
    run = ("--zoo", tmp_path / "zoo", "--sane", tmp_path / "run" / "model")
    hf_sane_command(
        *("pretrain", "--zoo", tmp_path / "zoo", "--max-steps", 2, "--batch-size", 2, "--log-with", "none"),
        *("--model", json.dumps({**SMALL, "latent_dim": 4}), "--output", tmp_path / "run"),
    )
    told = hf_sane_command("probe", *run, "--properties", "learning_rate", "--poolings", "mean", "--json")
    assert "learning_rate" in told.stdout
    drawing = ("--num-samples", 1, "--num-candidates", 3, "--bandwidth", 0.1, "--num-anchors", 2, "--top-fraction", 1)
    hf_sane_command("sample", *run, *module, *drawing, "--output", tmp_path / "drawn")
    hf_sane_command(
        "finetune", tmp_path / "drawn", *module, *few, "--epochs", 1, "--no-scratch", "--output", tmp_path / "tuned"
    )
    mine = _modules.load_module(own, WIDTH)().eval()
    for place, key in (("drawn", "test_accuracy"), ("tuned", "test_accuracy")):
        mine.load_state_dict(load_file(tmp_path / place / "network_0/model.safetensors"))
        with torch.no_grad():
            accuracy = (mine(images)["logits"].argmax(1) == labels).float().mean().item()
        record = json.loads((tmp_path / place / "network_0/run.json").read_text())
        assert record["results"][key] == pytest.approx(accuracy)


def steepness(module: nn.Module) -> float:
    return module.head.weight.abs().sum().item()


def test_a_recurrent_module_runs_one_network_after_the_other_and_says_so(few, tmp_path, caplog):
    zoo = build_zoo(settings(Recurrent), few, tmp_path)
    assert caplog.text.count("Recurrent cannot run in a stack (Batching rule not implemented for aten::gru") == 1
    check_runs(zoo, Recurrent, few)
    assert zoo.alignment is None
    assert "the zoo is not aligned: Recurrent has no permutation symmetry" in caplog.text
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4}
    run = {"max_steps": 1, "batch_size": 2, "log_with": "none", "progress_bar": False, "model": small}
    caplog.clear()
    sane = hf_sane.pretrain(zoo, **run, output=tmp_path / "run")
    assert "the views 'aligned' and 'permuted' are therefore the original networks" in caplog.text
    plain = hf_sane.pretrain(zoo, **run, views=["original", "original"], output=tmp_path / "plain")
    assert sane.record.results["loss"] == pytest.approx(plain.record.results["loss"], rel=1e-4)
    few_drawn = {"num_samples": 1, "num_candidates": 2, "bandwidth": 0.1, "unit": "latent_std"}
    drawn = sane.sample(zoo, images=few, top_fraction=1, **few_drawn)
    assert type(drawn[0]).__name__ == "Recurrent"
    assert caplog.text.count("distances between networks do not allow for reordered channels: Recurrent has no") == 1


def test_what_a_module_draws_is_the_same_after_an_interruption(own, few):
    architecture = _modules.register_architecture(_modules.load_module(own, {"drop": 0.5}))
    networks = architecture.fresh([1, 2])
    plan = HyperParameters.repeat([1, 2], learning_rate=0.01)
    states = []

    def train(seed: int, **options) -> dict[str, Tensor]:
        torch.manual_seed(seed)  # what the process draws does not matter
        return list(train_stacked(networks.config, networks.tensors, few, plan, epochs=2, **options))[-1].tensors

    whole = train(3, on_state=lambda epoch, state: states.append(state()))
    rest = train(4, start=states[1])
    assert all(torch.equal(tensor, rest[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"module_args": {"classes": 7}}, r"expected logits \[B, 10\] from Own .* got \[2, 7\]"),
        ({"module": None, "module_args": {"width": 6}}, r"expected a module for its arguments"),
        ({"module": nn.Linear(8, 10), "module_args": {"width": 6}}, "expected the class of the module"),
        ({"module": lambda: nn.Linear(9, 10)}, "Linear cannot run on few digits, inputs .*: mat1 and mat2"),
    ],
)
def test_what_does_not_fit_is_refused(given, message, own, few, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_zoo(settings(**{"module": own, **given}), few, tmp_path)


@pytest.mark.parametrize("given", [{"dropout": [0.0, 0.1]}, {"architecture": "cnn_s"}, {"activations": ["relu"]}])
def test_what_a_module_decides_itself_is_not_set(given):
    with pytest.raises(StrictDataclassClassValidationError, match=f"determines its {next(iter(given))}; .*-args"):
        settings("own.py:Own", **given)
    assert BuildZooSettings.from_options(module="own.py:Own", recipe="hyperparameter", output="x").sgd_factor == 5


def test_texts_train_a_module_that_reads_them(tmp_path):
    known = {word: index for index, word in enumerate(("[PAD]", "a", "good", "bad", "film"))}
    words = Tokenizer(models.WordLevel(known, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="a")
    rows = {"text": ["a good film", "a bad film"] * 30, "label": ["yes", "no"] * 30}
    options = {"num_models": 3, "epochs": 8, "learning_rate": 0.1, "progress_bar": False, "token_dim": 4}
    options |= {"texts": datasets.Dataset.from_dict(rows), "tokenizer": tokenizer, "output": tmp_path / "zoo"}
    zoo = hf_sane.build_zoo(module=Words, **options)
    assert {split.column("test_accuracy")[-1] for split in zoo.splits.values()} == {1.0}
    assert "images" not in zoo.facts.arguments
    card = " ".join((tmp_path / "zoo/README.md").read_text().split())
    assert "- texts: dataset (42 train, 9 validation, 9 test; 2 classes)" in card
    with pytest.raises(ValueError, match="does not record where its texts and tokenizer came from; name them"):
        recorded_texts(zoo.facts)


def test_a_dataset_in_memory_trains_a_module(own, tmp_path):
    pixels = [np.full((6, 6), value).tolist() for value in range(40)]
    columns = {"image": pixels, "label": [value % 2 for value in range(40)]}
    data = datasets.Dataset.from_dict(columns)
    options = {"module": own, "module_args": {"classes": 2}, "num_models": 3, "epochs": 1, "train_limit": 12}
    zoo = hf_sane.build_zoo(data, **options, output=tmp_path / "zoo")
    assert zoo.splits["train"].model(0).head.out_features == 2
    found = hf_sane.finetune([zoo.splits["train"].model(0)], data, epochs=1, scratch=False)
    assert found.record.data["images"]["train"] == 28
