"""Networks that are not image classifiers, judged by a function of the user's own."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import hf_sane
from hf_sane.architectures.presets import cnn_digits
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks import _modules
from hf_sane.networks._images import ImageData
from hf_sane.networks._metrics import Metric
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import Classification, OwnTask
from hf_sane.sampling._export import Provenance
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.finetune import FinetuneSettings
from hf_sane.workflows.judging import accuracy_notes
from hf_sane.workflows.regions import RegionsSettings
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.soup import SoupSettings

CODE = '''
import torch

INPUTS = {"validation": torch.linspace(-1, 1, 21), "test": torch.linspace(-0.95, 0.95, 17)}


def fit(module, split):
    """Minus the error of a sine."""
    x = INPUTS[split]
    return -(module(x[:, None])[:, 0] - torch.sin(2 * x)).square().mean()


def steepness(module):
    return module[0].weight.abs().sum()
'''
SMALL = {"num_samples": 3, "num_candidates": 6, "bandwidth": [0.3]}


class Regressor(nn.Sequential):
    """Numbers to numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))


def sine_error(module: nn.Module, split: str) -> Tensor:
    x = torch.linspace(-1, 1, 21 if split == "validation" else 16)
    return (module(x[:, None])[:, 0] - torch.sin(2 * x)).square().mean()


def steepness(module: nn.Module) -> float:
    return module[0].weight.abs().sum().item()


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_modules, "_REGISTERED", {})


@pytest.fixture(scope="module")
def regressors() -> list[nn.Module]:
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        found.append(Regressor())
    return found


def autoencoder(networks: list[nn.Module]) -> SANE:
    """An autoencoder that nobody trained."""
    extractor = SANEFeatureExtractor(8).fit(networks)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return SANE(SANEModel(SANEConfig(token_dim=8, **small, window_size=32)).eval(), extractor)


@pytest.fixture(scope="module")
def sane(regressors: list[nn.Module]) -> SANE:
    return autoencoder(regressors)


def test_validation_selects_and_test_reports(regressors, sane, tmp_path):
    networks = sane.sample(regressors, evaluate=sine_error, lower_is_better=True, **SMALL)
    assert [type(network) for network in networks] == [Regressor] * 3
    assert networks.notes == []
    for network, origin in zip(networks, networks.provenance, strict=True):
        for split in ("validation", "test"):
            expected = sine_error(network, split).item()
            assert origin.scores[f"{split}_sine_error"] == pytest.approx(expected, rel=1e-5)
        assert origin.test_accuracy is None
    chosen = [origin.scores["validation_sine_error"] for origin in networks.provenance]
    assert chosen == sorted(chosen)  # lower is better
    row = networks.comparison["sane_subsample"]
    reported = [origin.scores["test_sine_error"] for origin in networks.provenance]
    assert row["best_test_sine_error"] == pytest.approx(min(reported))
    assert row["test_sine_error"] == pytest.approx(sum(reported) / 3)
    assert "mean test sine error  best test sine error" in str(networks)
    networks.save_pretrained(tmp_path / "saved")
    assert Provenance.load(tmp_path / "saved/network_1") == networks.provenance[1]
    card = (tmp_path / "saved/network_1/README.md").read_text()
    assert "test sine error" in card.replace("_", " ")
    assert "image-classification" not in card


def test_the_best_of_all_candidates_are_kept(regressors, sane):
    kept = sane.sample(regressors, evaluate=steepness, **SMALL)
    every = sane.sample(regressors, evaluate=steepness, **SMALL | {"num_samples": 6})
    values = sorted((steepness(network) for network in every), reverse=True)
    assert [steepness(network) for network in kept] == pytest.approx(values[:3])


def test_one_and_the_same_data_is_called_that(regressors, sane):
    networks = sane.sample(regressors, evaluate=steepness, **SMALL)
    (note,) = networks.notes
    assert "steepness is measured on the data used for selection" in note
    assert list(networks.comparison["scratch"]) == [
        *("steepness", "best_steepness", "nearest_training_distance"),
        *("nearest_reconstruction_distance", "pairwise_distance"),
    ]
    assert list(networks.provenance[0].scores) == ["steepness"]
    assert "test" not in str(networks).partition("split")[2].partition("\n")[2]


def test_the_command_line_names_the_function(regressors, sane, tmp_path, hf_sane_command):
    (tmp_path / "mine.py").write_text(CODE + "\n\nclass Regressor(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))\n")  # fmt: skip
    for index, network in enumerate(regressors):
        (tmp_path / "nets" / f"{index}").mkdir(parents=True)
        torch.save(network.state_dict(), tmp_path / "nets" / f"{index}.pt")
    sane.save_pretrained(tmp_path / "sane")
    anchors = [argument for index in range(4) for argument in ("--anchors", tmp_path / "nets" / f"{index}.pt")]
    told = hf_sane_command(
        *("sample", "--sane", tmp_path / "sane", *anchors, "--module", f"{tmp_path / 'mine.py'}:Regressor"),
        *("--evaluate", f"{tmp_path / 'mine.py'}:fit", "--num-samples", 1, "--num-candidates", 4),
        *("--bandwidth", 0.1, "--output", tmp_path / "out", "--json"),
    )
    measured = json.loads(told.stdout)["networks"]
    inputs = torch.linspace(-0.95, 0.95, 17)
    errors = [(net(inputs[:, None])[:, 0] - torch.sin(2 * inputs)).square().mean().item() for net in regressors]
    assert measured["anchors"]["test_fit"] == pytest.approx(-sum(errors) / 4, rel=1e-5)
    assert measured["anchors"]["best_test_fit"] == pytest.approx(-min(errors), rel=1e-5)


def test_what_is_not_a_number_is_worst():
    task = OwnTask(lambda module: float("nan") if module[0].weight[0, 0] > 0 else 1.0)
    tensors = {name: tensor.repeat(2, *[1] * tensor.ndim) for name, tensor in Regressor().state_dict().items()}
    tensors["0.weight"][:, 0, 0] = torch.tensor([1.0, -1.0])
    _, scores = task.rank(StackedNetworks(Regressor(), tensors))
    assert scores.tolist() == [-torch.inf, 1.0]
    with pytest.raises(TypeError, match=r"expected a number from <lambda>\(module\), got NoneType; return one float"):
        OwnTask(lambda module: None).measure_one(Regressor(), "test")
    with pytest.raises(TypeError, match="got Parameter"):
        OwnTask(lambda module: module[0].weight).measure_one(Regressor(), "test")


def test_modules_are_judged_in_evaluation_mode_and_left_in_theirs():
    network = Regressor().train()
    assert OwnTask(lambda module: float(module.training)).measure_one(network, "test") == 0
    assert network.training


def test_a_metric_of_classes_ranks_stacks_as_it_does_single_networks(digits):
    networks = StackedNetworks.initialize(cnn_digits(), [0, 1, 2])
    task = Classification(digits, Metric("cross_entropy", higher_is_better=False))
    values, losses = task.measure(networks, "validation")
    alone = [task.measure_one(networks.model(index), "validation") for index in range(3)]
    assert values.tolist() == pytest.approx(alone, rel=1e-4)
    assert losses.tolist() == pytest.approx(alone, rel=1e-4)
    assert task.rank(networks)[1].tolist() == pytest.approx([-value for value in alone], rel=1e-4)
    assert task.label("test") == "test_cross_entropy"


class Checked(nn.Linear):
    """Three classes of images of 8 x 8 pixels in one channel, nothing else."""

    def __init__(self) -> None:
        super().__init__(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        nothing = {1: 0.0}[images.shape[1]]
        return super().forward(images.flatten(1)) + nothing


CANNOT_RUN = r"Checked cannot run on x, inputs \[.*, 3, 8, 8\]: KeyError: 3 \(test_judging.py, line \d+\); .*"


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((3, 8, 8), 3, rf"{CANNOT_RUN}\(--image-channels, --image-size\)"),
        ((1, 8, 9), 3, r"Checked cannot run on x, .*mat1 and mat2 shapes cannot be multiplied.*--image-size"),
        (
            (1, 8, 8),
            4,
            r"expected logits \[B, 4\] from Checked for the classes of x, got \[\d+, 3\]; .*; use data with",
        ),
    ],
)
def test_images_that_networks_cannot_judge_are_refused(shape, classes, message, sane, caplog):
    labels = torch.arange(8) % 3  # so that nothing else notices the fourth class
    images = torch.zeros(8, *shape)
    data = ImageData("x", images, labels, images, labels, images, labels, num_classes=classes)
    networks = [Checked(), Checked()]
    stack = StackedNetworks.from_state_dicts(networks[0], [network.state_dict() for network in networks])
    for metric in (Metric(), Metric("cross_entropy", higher_is_better=False)):
        with pytest.raises(ValueError, match=message):
            Classification(data, metric).measure(stack, "test")
        with pytest.raises(ValueError, match=message):
            Classification(data, metric).measure_one(networks[0], "test")
    hf_sane.register_architecture(Checked)
    for judge in (
        lambda: hf_sane.soup(networks, method="greedy", images=data),
        lambda: hf_sane.finetune(networks, data, epochs=1),
        lambda: autoencoder(networks).sample(networks, images=data, **SMALL),
    ):
        with pytest.raises(ValueError, match=message):
            judge()
    assert "cannot run in a stack" not in caplog.text
    if classes == 3:
        with pytest.raises(ValueError, match=message.replace(" x", " the data")):
            stack.evaluate(images, labels)


def test_fine_tuning_reports_the_function(digits, tiny_zoo):
    networks = [tiny_zoo.splits["train"].model(index) for index in range(2)]

    def norm(module: nn.Module) -> float:
        return module.classifier.weight.norm().item()

    tuned = hf_sane.finetune(networks, digits, epochs=1, evaluate=norm, scratch=False)
    assert tuned.curves["networks"][0] == pytest.approx([norm(network) for network in networks])
    assert tuned.curves["networks"][1] == pytest.approx([norm(network) for network in tuned])
    assert tuned.record.results == {"norm": tuned.curves}
    assert "networks: mean norm" in str(tuned)


def test_regions_are_judged_by_the_function(tiny_zoo):
    def norm(module: nn.Module) -> float:
        return module.classifier.weight.norm().item()

    options = {"label": ["optimizer"], "align": False, "plots": False, "num_points": 3, "evaluate": norm}
    found = hf_sane.map_regions(tiny_zoo, **options)
    finals = [split.final_epochs() for split in tiny_zoo.splits.values()]
    expected = [norm(s.model(i)) for s in finals for i in range(len(s)) if s.column("optimizer")[i] == "adam"]
    scores = found.scores["optimizer: adam"]
    assert scores.corners.tolist() == pytest.approx(expected)
    assert "norm of" in str(found)
    lower = hf_sane.map_regions(tiny_zoo, **options, lower_is_better=True).scores["optimizer: adam"]
    assert lower.better_than_outside("line") == pytest.approx(1 - scores.better_than_outside("line"))


def test_soups_of_any_transformers_class_are_selected_by_the_function(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(BertForSequenceClassification(BertConfig(vocab_size=12, **sizes, num_labels=3)).eval())
        networks[-1].save_pretrained(tmp_path / f"{seed}")

    def flatness(module: nn.Module, split: str) -> float:
        return module.classifier.weight.norm().item() + (split == "test")

    soup = hf_sane.soup(
        [tmp_path / f"{seed}" for seed in range(3)], method="greedy", evaluate=flatness, lower_is_better=True
    )
    alone = {f"{seed}": flatness(network, "validation") for seed, network in enumerate(networks)}
    assert soup.soup.ingredient_scores == pytest.approx(alone)
    assert soup.soup.score <= min(alone.values())
    assert soup.record.results["test_flatness"] == pytest.approx(soup.record.results["validation_flatness"] + 1)
    soup.save(tmp_path / "soup")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "soup")
    assert flatness(loaded, "validation") == pytest.approx(soup.soup.score)
    of_modules = hf_sane.soup(networks, method="greedy", evaluate=flatness, lower_is_better=True)
    assert list(of_modules.soup.weights.values()) == list(soup.soup.weights.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoupSettings(networks=["a"], output=None, method="greedy"), r"or a function \(--evaluate\)"),
        (lambda: FinetuneSettings(networks=["a"], output=None, evaluate="a.py:b", metric="f1"), "got both; name one"),
        (lambda: RegionsSettings(output=None, zoo=["a"], plots=False, evaluate="a.py:b"), "--num-points 20"),
        (lambda: FinetuneSettings(networks=["a"], output=None, evaluate="b").judgement(), "my_file.py:my_metric"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_name_that_cannot_be_called_is_refused(tmp_path: Path):
    (tmp_path / "mine.py").write_text("value = 3")
    with pytest.raises(TypeError, match="expected a class or function, got value of .*, which is a int"):
        FinetuneSettings(networks=["a"], output=None, evaluate=f"{tmp_path}/mine.py:value").judgement()


def test_networks_far_below_their_records_are_noticed():
    (note,) = accuracy_notes([0.9, 0.96, math.nan], 0.11)
    assert "have an accuracy of 0.11 on this data, but 0.93 in their records" in note
    assert "--image-size" in note
    assert accuracy_notes([0.9], 0.8) == accuracy_notes([], 0.1) == accuracy_notes([0.9], None) == []


FAILING = """
import torch

def raises(module):
    return torch.zeros(2) @ torch.zeros(3)

def no_arguments():
    return 1.0

def short(module):
    raise RuntimeError("boom")

def silent(module):
    assert False
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "raises",
            r"from raises\(\w+\), got RuntimeError: .* \(mine.py, line 5\); correct the function, which takes a",
        ),
        ("short", r"from short\(\w+\), got RuntimeError: boom \(mine.py, line 11\); correct"),
        ("silent", r"from silent\(\w+\), got AssertionError \(mine.py, line 14\); correct"),
        (
            "no_arguments",
            r"from no_arguments\(\w+\), got TypeError: .*takes 0 positional arguments.* given; correct the",
        ),
    ],
)
def test_a_function_that_fails_is_told_with_its_place(name, message, sane, regressors, tmp_path):
    (tmp_path / "mine.py").write_text(FAILING)
    with pytest.raises(ValueError, match=f"expected a number {message}"):
        sane.sample(regressors, evaluate=f"{tmp_path / 'mine.py'}:{name}", **SMALL)
