"""The whole road for a module that the library has never seen: import, align, pre-train, probe, sample, fine-tune."""

import copy
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

import hf_sane
from hf_sane.hub._publish import save_network
from hf_sane.networks import _modules
from hf_sane.networks._images import load_images
from hf_sane.networks._modules import find_architecture, load_module, register_architecture
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.compare import compare_samplers
from hf_sane.workflows.networks import open_stack
from hf_sane.workflows.show_zoo import show_zoo
from hf_sane.workflows.transfer import push
from hf_sane.zoo._dataset import Zoo

CODE = '''
from torch import nn


class TwoHeads(nn.Module):
    """GroupNorm, a grouped convolution, and a second output head."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2)
        self.norm = nn.GroupNorm(2, width)
        self.grouped = nn.Conv2d(width, width, 3, groups=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.digit = nn.Linear(width, 10)
        self.parity = nn.Linear(width, 1)

    def forward(self, images):
        hidden = self.grouped(self.norm(self.stem(images)).relu()).relu()
        hidden = self.pool(hidden).flatten(1)
        return self.digit(hidden), self.parity(hidden)
'''
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4}
COUNT = 12


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_modules, "_REGISTERED", {})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of a module, checkpoints of it, and a table of their accuracies."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "two_heads.py").write_text(CODE)
    make = load_module(str(folder / "two_heads.py") + ":TwoHeads")
    data = load_images("digits", train_limit=200)
    lines = ["net,test_acc,lr,parity"]
    (folder / "nets").mkdir()
    for index in range(COUNT):
        torch.manual_seed(index)
        network = make()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(15):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data.train_images)[0], data.train_labels).backward()
            optimizer.step()
        images, labels = data.split("test")
        accuracy = (network(images)[0].argmax(1) == labels).float().mean().item()
        lines.append(f"net{index},{accuracy},0.02,{'odd' if index % 2 else 'even'}")
        save_file(network.state_dict(), folder / "nets" / f"net{index}.safetensors")
    (folder / "runs.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def zoo(own: Path) -> Path:
    hf_sane.import_zoo(own / "nets", properties=own / "runs.csv", token_dim=37, group_by="network", output=own / "zoo")
    return own / "zoo"


@pytest.fixture(scope="module")
def sane(own: Path, zoo: Path) -> Path:
    hf_sane.pretrain(
        zoo,
        output=own / "run",
        max_steps=2,
        batch_size=3,
        model=SMALL,
        views=["original", "original"],
        log_with="none",
    )
    return own / "run" / "model"


def register(own: Path):
    return register_architecture(
        load_module(f"{own / 'two_heads.py'}:TwoHeads"), torch.zeros(1, 1, 8, 8), name="TwoHeads"
    )


def test_networks_of_a_registered_module_run(own, zoo):
    split = Zoo.load(zoo).splits["train"]
    with pytest.raises(ValueError, match=r"unknown to this library.*; pass its code: hf_sane.register_architecture\("):
        split.model(0)
    architecture = register(own)
    assert find_architecture(split.layout(0)) is architecture
    network = split.model(0)
    original = load_file(own / "nets" / split.column("repo_id")[0])
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in original.items())
    images, labels = load_images("digits").split("test")
    accuracy = split.networks().evaluate(images, labels)[1]
    np.testing.assert_allclose(accuracy, split.column("test_accuracy"), atol=0.005)  # a few images are near ties


def test_another_module_is_named_with_what_differs(own, zoo):
    """The tensors of the zoo are not those of the module that was passed, or of its arguments."""
    wider = load_module(f"{own / 'two_heads.py'}:TwoHeads", {"width": 4})
    register_architecture(wider, torch.zeros(1, 1, 8, 8), name="Wide")
    split = Zoo.load(zoo).splits["train"]
    shapes = r"with digit.weight \[10, 4\] instead of \[10, 8\]"
    wanted = rf"expected a module with the tensors of 'net\d+.safetensors', got Wide, {shapes}; pass the class and"
    with pytest.raises(ValueError, match=wanted):
        split.config(0)
    _modules._REGISTERED.clear()
    register_architecture(nn.Sequential(nn.Linear(2, 3)), torch.zeros(1, 2), name="Other")
    with pytest.raises(ValueError, match=r"got Other, without .* and 7 more and with further 0.bias, 0.weight; pass"):
        split.config(0)


def test_imported_and_built_networks_of_a_module_are_of_one_architecture(own, zoo, tmp_path):
    module = {"module": f"{own / 'two_heads.py'}:TwoHeads", "module_input": [1, 8, 8]}
    built = hf_sane.build_zoo(
        "digits",
        output=tmp_path / "built",
        num_models=6,
        epochs=1,
        train_limit=50,
        token_dim=37,
        progress_bar=False,
        **module,
    )
    kinds = {str(part.splits["train"].column("architecture")[0]) for part in (built, Zoo.load(zoo))}
    assert len(kinds) == 2
    options = {"plots": False, "num_points": 0, "align": False, **module}
    assert "net" in str(hf_sane.map_regions([zoo, tmp_path / "built"], **options))


def test_its_zoo_is_aligned_by_traced_symmetries(own, zoo):
    found = Zoo.load(zoo)
    with pytest.raises(ValueError, match="--module my_file.py:MyModule --module-input 1,28,28"):
        hf_sane.align_zoo(found)
    register_architecture(load_module(f"{own / 'two_heads.py'}:TwoHeads"), name="TwoHeads")
    with pytest.raises(ValueError, match=r"example inputs of the module TwoHeads\); pass the shape of its inputs: "):
        hf_sane.align_zoo(found)
    architecture = register(own)
    aligned = hf_sane.align_zoo(found)
    assert aligned.alignment is not None
    free = [generator.size for generator in architecture.permutations.generators.values() if generator.size > 1]
    assert free  # something can be permuted
    (spec,) = aligned.alignment.specs.values()
    assert spec.generators.keys() == architecture.permutations.generators.keys()


def test_regions_need_its_code_to_run_networks_only(own, zoo, tmp_path):
    """The symmetries of a zoo that was aligned once are those that it stores."""
    with pytest.raises(ValueError, match=r"unknown .*or map the networks as they are \(--no-align\)"):
        hf_sane.map_regions(zoo, label="parity", plots=False)
    register(own)
    hf_sane.align_zoo(Zoo.load(zoo)).save(tmp_path / "aligned")
    _modules._REGISTERED.clear()
    options = {"label": "parity", "plots": False}

    def distances() -> list[float]:
        found = hf_sane.map_regions(tmp_path / "aligned", **options).record.results
        table = found["weights"]["parity"]["distances"]["table"]
        return [value for row in table.values() for value in row.values()]

    mapped = distances()
    register(own)
    assert mapped == pytest.approx(distances())
    _modules._REGISTERED.clear()
    with pytest.raises(ValueError, match=r"the architecture of the networks is unknown; pass its code"):
        hf_sane.map_regions(tmp_path / "aligned", **options, num_points=2, evaluate=lambda network: 0.0)


def test_probes_know_its_properties(zoo, sane):
    table = hf_sane.probe(zoo, sane, poolings=["mean"]).table
    assert list(table) == ["test_accuracy"]  # neither epochs nor gaps are known
    assert {"weights", "layer_statistics", "sane_mean"} <= table["test_accuracy"].keys()


def test_properties_that_do_not_differ_are_not_probed(own, zoo, sane, tmp_path):
    assert "imported properties: test_accuracy, learning_rate, parity" in str(show_zoo(zoo))
    with pytest.raises(
        ValueError, match=r"expected test networks that differ in learning_rate, got 0.02 for all 2 in"
    ):
        hf_sane.probe(zoo, sane, properties="learning_rate")
    (tmp_path / "rates.csv").write_text("net,lr\n" + "\n".join(f"net{index},0.02" for index in range(COUNT)))
    settings = {"properties": tmp_path / "rates.csv", "token_dim": 37, "group_by": "network"}
    same = hf_sane.import_zoo(own / "nets", **settings, output=tmp_path / "zoo")
    with pytest.raises(ValueError, match=r"known of all networks and differs within every split, got learning_rate,"):
        hf_sane.probe(same, sane)


def test_without_test_accuracies_all_imported_numbers_are_probed(own, sane, tmp_path):
    rows = [f"net{index},{index % 4},{index / 20},0.02" for index in range(COUNT)]
    (tmp_path / "runs.csv").write_text("\n".join(["net,epoch,val_acc,lr", *rows]))
    settings = {"properties": tmp_path / "runs.csv", "token_dim": 37, "group_by": "network"}
    zoo = hf_sane.import_zoo(own / "nets", **settings, output=tmp_path / "zoo")
    assert list(hf_sane.probe(zoo, sane, poolings=["mean"]).table) == ["epoch", "validation_accuracy"]
    with pytest.raises(ValueError, match="does not name the images it was trained on; pass them"):
        hf_sane.sample(zoo, sane)


def test_it_is_sampled_judged_saved_and_fine_tuned(own, zoo, sane, tmp_path):
    architecture = register(own)
    options = {"images": "digits", "num_samples": 2, "num_candidates": 6, "bandwidth": [0.2]}
    networks = hf_sane.sample(zoo, sane, **options)
    assert type(networks[0]).__name__ == "TwoHeads"
    assert {"anchors", "scratch", "sane_subsample"} <= networks.comparison.keys()
    networks.save_pretrained(tmp_path / "sampled")
    fresh = architecture.make()
    fresh.load_state_dict(load_file(tmp_path / "sampled/network_0/model.safetensors"))
    images, labels = load_images("digits").split("test")
    accuracy = (fresh.eval()(images)[0].argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(networks.provenance[0].test_accuracy)
    card = (tmp_path / "sampled/network_0/README.md").read_text()
    assert "network = TwoHeads()" in card
    (code,) = re.findall(r"^network = hf_sane.*", card, flags=re.MULTILINE)
    folder = str(tmp_path / "sampled/network_0")
    held = {"hf_sane": hf_sane, "TwoHeads": architecture.make}
    exec(code.replace('"."', repr(folder)), held)
    assert all(torch.equal(held["network"].state_dict()[name], value) for name, value in fresh.state_dict().items())
    check_auto_classes(folder, fresh, images[:3], tmp_path / "saved again")
    settings = json.loads((tmp_path / "sampled/network_0/config.json").read_text())
    assert settings["id2label"] == {str(label): str(label) for label in range(10)}
    assert settings["label2id"]["7"] == 7
    soup = hf_sane.soup(tmp_path / "sampled", method="greedy", images="digits")
    assert type(soup.model).__name__ == "TwoHeads"
    assert soup.record.results["test_accuracy"] > 0
    soup.save(tmp_path / "soup")
    hf_sane.soup([tmp_path / "soup", folder], output=tmp_path / "again")  # without data
    for place in ("soup", "again"):
        assert json.loads((tmp_path / place / "config.json").read_text())["id2label"] == settings["id2label"]
    embedded = hf_sane.embed(tmp_path / "sampled", sane, plots=False)
    assert [Path(name).name for name in embedded.splits["train"]["checkpoint"]] == ["network_0", "network_1"]
    vector = pipeline("weight-feature-extraction", model=str(sane))(folder)
    assert vector.tolist() == pytest.approx(embedded.splits["train"]["mean"][0], abs=1e-6)
    swa = hf_sane.finetune(tmp_path / "sampled", "digits", epochs=2, average_epochs=2, train_limit=64, scratch=False)
    assert type(swa[0]).__name__ == "TwoHeads"
    few = load_images("digits", train_limit=64)
    assert swa.evaluate(few).tolist() == pytest.approx(swa.averaged["networks"])
    tuned = hf_sane.finetune(tmp_path / "sampled", "digits", epochs=1, train_limit=64)
    assert len(tuned) == 2
    assert tuned.curves["networks"][0][0] == pytest.approx(accuracy)
    assert tuned.curves["scratch"][0] != tuned.curves["networks"][0]
    resized = load_images("digits", image_size=10).split("test")
    larger = hf_sane.finetune(networks, "digits", image_size=10, epochs=1, train_limit=64, scratch=False)
    assert larger.curves["networks"][0] == pytest.approx(networks.stack.evaluate(*resized)[1].tolist())


def check_auto_classes(folder: str, network: nn.Module, images: torch.Tensor, again: Path) -> None:
    """Auto classes and pipelines of Transformers load a network whose module is registered."""
    for auto_class in (AutoModelForImageClassification, AutoModel):
        loaded = auto_class.from_pretrained(folder)
        assert torch.equal(loaded(pixel_values=images).logits, network(images)[0])
        assert loaded.config.id2label[7] == "7"
    loaded.save_pretrained(again)
    assert load_file(again / "model.safetensors").keys() == network.state_dict().keys()
    assert json.loads((again / "config.json").read_text())["architectures"] == ["TwoHeads"]
    assert torch.equal(AutoModel.from_pretrained(again)(images).logits, network(images)[0])
    (stack, _) = open_stack([loaded])
    assert type(stack.model(0)).__name__ == "TwoHeads"
    digit = Image.fromarray((load_digits().images[5] * 255 / 16).astype(np.uint8))
    found = pipeline("image-classification", model=folder)(digit)
    prepared = AutoImageProcessor.from_pretrained(folder)(digit, return_tensors="pt")["pixel_values"]
    assert found[0]["label"] == str(network(prepared)[0].argmax().item())


def test_arguments_are_named_where_the_module_is_not_registered(own, tmp_path):
    wide = load_module(str(own / "two_heads.py") + ":TwoHeads", {"width": 10})
    network = register_architecture(wide, name="TwoHeads").make()
    save_network(tmp_path / "wide", network, RunRecord.start(arguments={}).finish({}))
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "wide").module.stem.weight, network.stem.weight)
    assert AutoConfig.from_pretrained(tmp_path / "wide").module_arguments == {"width": 10}
    _modules._REGISTERED.clear()
    remedy = r"register_architecture\(functools.partial\(TwoHeads, width=10\)\)"
    with pytest.raises(ValueError, match=f"got TwoHeads, whose code is never fetched; .*{remedy}"):
        AutoModel.from_pretrained(tmp_path / "wide")


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_it_is_loaded_from_the_hub_and_without_its_code_refused(own, local_hub, tmp_path):
    architecture = register(own)
    networks = architecture.fresh([0, 1])
    record = RunRecord.start(arguments={}).finish({"test_accuracy": 0.5})
    save_network(tmp_path / "network", networks.model(0), record)
    push("samples", tmp_path / "network", "me/own")
    loaded = architecture.from_pretrained("me/own")
    assert torch.equal(loaded.stem.weight, networks.model(0).stem.weight)
    assert torch.equal(AutoModel.from_pretrained("me/own").module.stem.weight, loaded.stem.weight)
    stack, names = open_stack(["me/own", tmp_path / "network"])
    assert (names[0], torch.equal(stack.model(0).stem.weight, stack.model(1).stem.weight)) == ("me/own", True)
    files = {request.path.rsplit("/", 1)[-1] for request in local_hub.log if "/resolve/" in request.path}
    assert "model.safetensors" in files
    other = register_architecture(lambda: nn.Linear(3, 2), name="Other")
    with pytest.raises(ValueError, match=r"expected the weights of Other, got tensors of other names .*digit.bias"):
        other.from_pretrained(tmp_path / "network")
    (tmp_path / "network" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"changed|differs|modified"):
        architecture.from_pretrained(tmp_path / "network")
    _modules._REGISTERED.clear()
    with pytest.raises(InvalidFileError, match="got the config.json of a module of your own; pass the code"):
        open_stack(["me/own"])


def test_classes_in_another_order_are_noticed(own, zoo, sane, tmp_path):
    register(own)
    data = load_images("digits")
    shifted = {f"{split}_labels": (data.split(split)[1] + 1) % 10 for split in ("train", "validation", "test")}
    wrong = dataclasses.replace(data, **shifted)
    options = {"num_samples": 1, "num_candidates": 2, "bandwidth": [0.0]}
    right = hf_sane.sample(zoo, sane, images=data, **options)
    assert not right.notes
    found = hf_sane.sample(zoo, sane, images=wrong, **options)
    (note,) = found.notes
    assert note.startswith("the trained networks have an accuracy of 0.")
    assert "and classes the order, of training" in note


def test_zoos_without_alignment_and_accuracies_are_compared_and_reconstructed(own, zoo, sane):
    register(own)
    options = {"methods": ["anchors", "sane_subsampled"], "num_candidates": 6, "num_samples": 2, "bandwidth": [0.2]}
    compared = compare_samplers(zoo, sane, "digits", num_anchors=2, **options)
    train = Zoo.load(zoo).splits["train"]
    accuracy = train.networks().evaluate(*compared.data.split("validation"))[1]
    best = sorted(range(len(train)), key=lambda index: -accuracy[index])[:2]
    assert compared.anchors == tuple(train.run_ids[index] for index in best)
    curves = compared.finetune(1)
    assert [len(found) for found in curves["anchors"]] == [2, 2]  # before and after the epoch, two networks
    assert compared.notes == [
        "the zoo does not record how its networks were trained; fine-tuned with optimizer adam, learning_rate 0.001, "
        "weight_decay 0.0"
    ]
    rebuilt = hf_sane.reconstruct(zoo, sane, "digits", linear=False).record.results["reconstruction"]
    found = next(iter(rebuilt.values()))
    test = Zoo.load(zoo).splits["test"]
    accuracy = test.networks().evaluate(*compared.data.split("test"))[1].mean().item()
    assert (found["networks"], found["accuracy_original"]) == (len(test), pytest.approx(accuracy))


def test_networks_may_be_given_as_files_and_modules(own, sane):
    architecture = register(own)
    files = [own / "nets" / f"net{index}.safetensors" for index in range(3)]
    options = {"images": "digits", "num_samples": 1, "num_candidates": 2, "bandwidth": [0.1]}
    of_files = hf_sane.sample(files, sane, **options)
    modules = [architecture.network(load_file(file)) for file in files]
    of_modules = hf_sane.sample(modules, sane, **options)
    assert all(
        torch.equal(a, b)
        for a, b in zip(of_files.stack.tensors.values(), of_modules.stack.tensors.values(), strict=True)
    )
    with pytest.raises(ValueError, match="expected networks of one architecture, but .* differs from"):
        hf_sane.sample([modules[0], nn.Linear(2, 3)], sane, **options)


def test_the_command_line_takes_the_module(own, zoo, sane, tmp_path, hf_sane_command):
    flags = (
        "--module",
        f"{own / 'two_heads.py'}:TwoHeads",
        "--module-args",
        '{"width": 8}',
        "--module-input",
        "1,8,8",
    )
    Zoo.load(zoo).save(tmp_path / "zoo")
    assert "free permutations" in hf_sane_command("zoo", "align", tmp_path / "zoo", *flags).stdout
    drawn = ("--num-samples", 1, "--num-candidates", 2, "--bandwidth", 0.1, "--images", "digits")
    found = hf_sane_command(
        *("sample", "--sane", sane, "--zoo", tmp_path / "zoo", *drawn, *flags),
        *("--output", tmp_path / "out", "--json"),
    )
    assert json.loads(found.stdout)
    folder = tmp_path / "out/network_0"
    assert json.loads((folder / "config.json").read_text())["width"] == 8
    assert "network = TwoHeads(width=8)" in (folder / "README.md").read_text()
    hub_class = type("TwoHeads", (load_module(f"{own / 'two_heads.py'}:TwoHeads").func, PyTorchModelHubMixin), {})
    loaded = hub_class.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items())


def test_bare_state_dicts_are_averaged_with_the_module(own, tmp_path, hf_sane_command):
    files = [own / "nets" / f"net{index}.safetensors" for index in range(3)]
    refused = hf_sane_command("soup", *files, "-o", tmp_path / "soup", exit_code=2).stderr
    assert "or the code of its module (--module)" in refused
    flags = ("--module", f"{own / 'two_heads.py'}:TwoHeads", "--module-input", "1,8,8")
    (tmp_path / "nets").mkdir()
    for file in files:
        shutil.copy(file, tmp_path / "nets")
    hf_sane_command("soup", tmp_path / "nets", *flags, "-o", tmp_path / "soup")
    states, saved = [load_file(file) for file in files], load_file(tmp_path / "soup/model.safetensors")
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, torch.stack([state[name] for state in states]).mean(dim=0))
    assert "network = TwoHeads()" in (tmp_path / "soup/README.md").read_text()
    greedy = hf_sane.soup(files, method="greedy", images="digits", align=True)
    images, labels = load_images("digits").split("test")
    accuracy = (greedy.model(images)[0].argmax(1) == labels).float().mean().item()
    assert greedy.record.results["test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("two_heads.py", "expected a file or package and a name, such as my_file.py:MyModule"),
        ("no.py:X", "no such file: no.py"),
        ("{own}/two_heads.py:TwoHeds", "got TwoHeads; did you mean 'TwoHeads'"),
        ("no_such_package.file:X", "No module named 'no_such_package'"),
    ],
)
def test_a_module_that_is_not_there_is_refused(place, reason, own):
    with pytest.raises((ValueError, FileNotFoundError, ImportError), match=reason):
        load_module(place.replace("{own}", str(own)))


ODD = """
from torch import nn

from sibling import WIDTH


class Lazy(nn.Sequential):
    def __init__(self, width=WIDTH):
        super().__init__(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, 10))


class Needs(nn.Linear):
    def __init__(self, width):
        super().__init__(width, {3: 10}[width])

    def forward(self, images):
        from other_sibling import part

        return super().forward(images.flatten(1)[:, part])
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of code that imports others of its folder, at once and later."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "odd_code.py").write_text(ODD)
    (tmp_path / "sibling.py").write_text("WIDTH = 6")
    (tmp_path / "other_sibling.py").write_text("part = slice(0, 3)")
    for name in ("odd_code", "sibling", "other_sibling"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "odd_code.py"


def test_a_file_imports_others_of_its_folder(odd):
    needs = load_module(f"{odd}:Needs", {"width": 3})()
    assert needs(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    (odd.parent / "sibling.py").write_text("import no_such_package")
    del sys.modules["sibling"]
    with pytest.raises(ValueError, match=r"cannot import .*odd_code.py: No module named 'no_such_package'; install"):
        load_module(f"{odd}:Needs")
    (odd.parent / "sibling.py").write_text("WIDTH = {}['width']")
    with pytest.raises(ValueError, match=r"odd_code.py: KeyError: 'width' \(sibling.py, line 1\); correct its code"):
        load_module(f"{odd}:Needs")


def test_lazy_layers_get_their_shapes_from_the_example_inputs(odd):
    lazy = load_module(f"{odd}:Lazy")
    with pytest.raises(ValueError, match=r"shapes of 1.weight, 1.bias of Lazy are unknown .*--module-input 1,28,28"):
        register_architecture(lazy)
    for given in (lazy, lazy()):
        found = register_architecture(given, torch.zeros(1, 1, 8, 8))
        assert found.structure[1].weight.shape == (6, 64)
        drawn = found.fresh([0, 1]).tensors["1.weight"]
        assert drawn.shape == (2, 6, 64)
        assert not torch.equal(drawn[0], drawn[1])
        assert found.permutations.sizes


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        (
            "Needs",
            {},
            TypeError,
            "Needs: missing a required argument: 'width'; pass its arguments, such as --module-a",
        ),
        ("Needs", {"module_args": {"wdth": 3}}, TypeError, "unexpected keyword argument 'wdth'.*--module-args"),
        ("Needs", {"module_args": {"width": 4}}, ValueError, r"raises KeyError: 4 \(odd_code.py, line 14\).*-args"),
        ("Lazy", {"module_input": [1, 8, 9]}, None, ""),
        (
            "Needs",
            {"module_args": {"width": 3}, "module_input": [2]},
            ValueError,
            r"inputs \[1, 2\]: .* the batch dim",
        ),
    ],
)
def test_a_module_that_cannot_be_made_or_run_names_the_option(name, options, kind, message, odd):
    settings = _modules.ModuleSettings(module=f"{odd}:{name}", **options)
    if kind is None:
        assert settings.register().structure[1].weight.shape == (6, 72)
        return
    with pytest.raises(kind, match=message):
        settings.register()


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, or a function that makes one, got int"):
        register_architecture(lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="expected a module with weights, got ReLU without weights"):
        register_architecture(nn.ReLU)


def test_a_network_may_be_registered_itself(own, caplog):
    """Its copies keep nothing that was learnt: layers without `reset_parameters` have it as `_reset_parameters`."""

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.arange(3.0))
            self.attention, self.head = nn.MultiheadAttention(4, 2), nn.Linear(4, 2)

    torch.manual_seed(0)
    network = Attentive()
    learnt = copy.deepcopy(network.state_dict())
    architecture = register_architecture(network)
    assert architecture.network(learnt) is not network
    one, other, again = (architecture.fresh([seed]).tensors for seed in (1, 2, 1))
    for name in ("attention.in_proj_weight", "attention.out_proj.weight", "head.weight"):
        assert not torch.equal(one[name][0], other[name][0]), name
        assert not torch.equal(one[name][0], learnt[name]), name
        assert torch.equal(one[name], again[name]), name
    bound = (6 / (4 + 12)) ** 0.5  # what MultiheadAttention draws from; nothing else would reset in_proj_weight
    assert one["attention.in_proj_weight"].abs().max() <= bound
    assert one["scale"][0].sort().values.tolist() == [0, 1, 2]
    assert "get shuffled values of scale" in caplog.text
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in network.state_dict().items())
