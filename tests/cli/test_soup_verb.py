"""`hf-sane soup`, end to end: ingredients in, a model repo with its card out."""

import json
import re
import shutil
import warnings

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits
from hf_sane.merging._averaging import average_checkpoints
from hf_sane.merging._ingredients import open_ingredients
from hf_sane.merging._scoring import ImageScore
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._images import load_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._run_record import RunRecord
from hf_sane.symmetry._transformers_models import transformers_spec
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.shared import SourceSettings

quiet_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
METRIC = """
import datasets
import evaluate


class ErrorRate(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int64")
        return evaluate.MetricInfo("", citation="", features=datasets.Features(predictions=number, references=number))

    def _compute(self, predictions, references, scale=1):
        return {"error_rate": scale * sum(p != r for p, r in zip(predictions, references)) / len(references)}
"""


@pytest.fixture(scope="module")
def networks(digits):
    """Four networks fine-tuned from one."""
    config = cnn_digits()
    tensors = StackedNetworks.initialize(config, [0]).tensors
    for count, rate in ((1, 1e-2), (4, 5e-3)):
        tensors = {name: tensor.repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in tensors.items()}
        hyper_parameters = HyperParameters.repeat(range(count), learning_rate=rate)
        (snapshot,) = train_stacked(config, tensors, digits, hyper_parameters, epochs=6)
        tensors = snapshot.tensors
    return StackedNetworks(config, tensors)


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    """Folder of their folders; do not write to it."""
    root = tmp_path_factory.mktemp("networks")
    for index in range(4):
        networks.model(index).save_pretrained(root / f"network_{index}")
    return root


def run_card_code(folder, monkeypatch):
    card = ModelCard.load(folder / "README.md")
    (code,) = re.findall(r"```python\n(.*?)```", str(card), flags=re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, {})
    return card


def test_a_greedy_soup_is_written_with_its_card(folder, tmp_path, hf_sane_command, monkeypatch):
    names = [f"network_{index}" for index in range(4)]
    arguments = (
        *(folder / name for name in names),
        "--method",
        "greedy",
        "--metric",
        "accuracy",
        "--images",
        "digits",
    )
    printed = hf_sane_command("soup", *arguments, "-o", tmp_path / "soup").output
    record = RunRecord.load(tmp_path / "soup" / "run.json")
    rows = record.results["ingredients"]
    assert list(rows) == names
    assert sum(row["weight"] for row in rows.values()) == pytest.approx(1)
    assert record.results["validation_accuracy"] >= max(row["held_out_score"] for row in rows.values())
    data = load_images("digits")
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "soup")
    for split in ("validation", "test"):
        assert record.results[f"{split}_accuracy"] == ImageScore(*data.split(split))(saved)
    best = AutoModelForImageClassification.from_pretrained(folder / record.results["best_ingredient"])
    assert record.results["best_ingredient_test_accuracy"] == ImageScore(*data.split("test"))(best)
    weights = [row["weight"] for row in rows.values()]
    expected = average_checkpoints(open_ingredients([folder / name for name in names]), weights)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.state_dict().items())
    card = run_card_code(tmp_path / "soup", monkeypatch)
    for name, row in rows.items():
        assert f"| {name} | {row['weight']:.4g} | {row['held_out_score']:.4g} |" in str(card)
    assert card.data.eval_results[0].metric_value == round(record.results["test_accuracy"], 6)
    assert {"model-soup", "merge"} <= set(card.data.tags)
    assert "held-out score" in printed
    refused = hf_sane_command("soup", *arguments, "-o", tmp_path / "soup", exit_code=2)
    assert "already holds a finished soup" in refused.stderr


def test_a_uniform_soup_of_a_folder_needs_no_data(folder, tmp_path, hf_sane_command):
    hf_sane_command("soup", folder, "-o", tmp_path / "soup", "--include-code")
    record = RunRecord.load(tmp_path / "soup" / "run.json")
    assert record.results == {"ingredients": {f"network_{index}": {"weight": 0.25} for index in range(4)}}
    card = str(ModelCard.load(tmp_path / "soup" / "README.md"))
    assert "no ingredients were selected" in card
    assert "trust_remote_code=True" in card
    assert (tmp_path / "soup" / "modeling_zoo.py").exists()


def test_any_metric_with_options(folder, tmp_path, hf_sane_command):
    (tmp_path / "error_rate").mkdir()
    (tmp_path / "error_rate" / "error_rate.py").write_text(METRIC)
    arguments = ("--method", "greedy", "--images", "digits", "--metric", tmp_path / "error_rate", "--lower-is-better")
    hf_sane_command("soup", folder, *arguments, "--metric-options", '{"scale": 100}', "-o", tmp_path / "soup")
    results = RunRecord.load(tmp_path / "soup" / "run.json").results
    scores = [row["held_out_score"] for row in results["ingredients"].values()]
    assert results["validation_error_rate"] <= min(scores)
    assert max(scores) > 1  # per cent
    refused = hf_sane_command(
        "soup", folder, *arguments, "--metric-options", "{scale", "-o", tmp_path / "other", exit_code=2
    )
    assert "--metric-options: expected a JSON object" in refused.stderr


def test_shuffled_networks_are_aligned_unless_told_otherwise(networks, tmp_path, hf_sane_command, seeded_spec):
    spec, permutation = seeded_spec
    networks.model(0).save_pretrained(tmp_path / "in" / "a")
    shuffled = networks.model(0)
    shuffled.load_state_dict(spec.apply(networks.state_dict(0), permutation))
    shuffled.save_pretrained(tmp_path / "in" / "b")
    for name, flag in {"aligned": (), "plain": ("--no-align",)}.items():
        hf_sane_command("soup", tmp_path / "in", *flag, "--images", "digits", "-o", tmp_path / name)
    results = {name: RunRecord.load(tmp_path / name / "run.json") for name in ("aligned", "plain")}
    assert results["aligned"].results["test_accuracy"] == results["aligned"].results["best_ingredient_test_accuracy"]
    assert results["plain"].results["test_accuracy"] < 0.6 * results["aligned"].results["test_accuracy"]
    assert "Channels were aligned" in (tmp_path / "aligned" / "README.md").read_text()
    assert "Channels were aligned" not in (tmp_path / "plain" / "README.md").read_text()


@pytest.fixture
def seeded_spec(networks):
    from hf_sane.symmetry._networks import permutation_spec

    spec = permutation_spec(networks.config)
    return spec, spec.random(generator=torch.Generator().manual_seed(0))


def test_batch_norm_is_re_estimated_on_request(tmp_path, hf_sane_command):
    config = cifar_resnet(20, width=2, num_channels=1)
    for index in range(2):
        build_model(config).save_pretrained(tmp_path / "in" / f"{index}")
    for flag in ("--condition", "--no-condition"):
        hf_sane_command(
            "soup",
            tmp_path / "in",
            flag,
            "--condition-batches",
            3,
            "--images",
            "digits",
            "-o",
            tmp_path / flag,
        )
    with_, without = (load_file(tmp_path / flag / "model.safetensors") for flag in ("--condition", "--no-condition"))
    differing = {name for name in with_ if not torch.equal(with_[name], without[name])}
    assert differing
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in differing)
    assert "re-estimated from training images" in (tmp_path / "--condition" / "README.md").read_text()


def test_a_foreign_architecture_keeps_its_processor_and_dtype(tmp_path, hf_sane_command, monkeypatch):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    for index in range(2):
        ViTForImageClassification(config).to(torch.bfloat16).save_pretrained(tmp_path / "in" / f"{index}")
        (tmp_path / "in" / f"{index}" / "preprocessor_config.json").write_text('{"size": 8}')
    hf_sane_command("soup", tmp_path / "in", "-o", tmp_path / "soup")
    assert json.loads((tmp_path / "soup" / "preprocessor_config.json").read_text()) == {"size": 8}
    tensors = load_file(tmp_path / "soup" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    run_card_code(tmp_path / "soup", monkeypatch)


def test_a_foreign_architecture_is_aligned_on_request(tmp_path, hf_sane_command):
    """Its symmetries are traced; files call its tensors by other names than the model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
    model.save_pretrained(tmp_path / "in" / "a")
    spec = transformers_spec(model.config)
    permutation = spec.random(generator=torch.Generator().manual_seed(0))
    model.load_state_dict(spec.apply(model.state_dict(), permutation))
    model.save_pretrained(tmp_path / "in" / "b")
    hf_sane_command("soup", tmp_path / "in", "--align", "-o", tmp_path / "aligned")
    first, aligned = (load_file(tmp_path / name / "model.safetensors") for name in ("in/a", "aligned"))
    assert first.keys() == aligned.keys()
    assert all(torch.allclose(aligned[name], tensor, atol=1e-6) for name, tensor in first.items())
    refused = hf_sane_command("soup", tmp_path / "in", "-o", tmp_path / "plain", exit_code=2)
    assert "a and b are the same network with its channels in another order" in " ".join(refused.stderr.split())
    assert not (tmp_path / "plain").exists()


@pytest.fixture(scope="module")
def adapters(networks, digits, tmp_path_factory):
    """Base model and three adapters of it, one of them harmful."""
    root = tmp_path_factory.mktemp("adapters")
    networks.model(0).save_pretrained(root / "base")
    for index in range(3):
        torch.manual_seed(index)
        base = AutoModelForImageClassification.from_pretrained(root / "base")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base, LoraConfig(r=2, lora_alpha=2, target_modules=["hidden.0", "classifier"]))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=2 if index == 2 else 0.05)
            model.save_pretrained(root / "in" / f"run_{index}", save_embedding_layers=False)
    return root


@quiet_peft
def test_a_soup_of_adapters(adapters, tmp_path, hf_sane_command):
    hf_sane_command("soup", adapters / "in", "--method", "greedy", "--images", "digits", "-o", tmp_path / "soup")
    results = RunRecord.load(tmp_path / "soup" / "run.json").results
    assert results["ingredients"]["run_2"]["weight"] == 0
    assert results["validation_accuracy"] >= max(row["held_out_score"] for row in results["ingredients"].values())
    base = AutoModelForImageClassification.from_pretrained(adapters / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "soup").merge_and_unload()
    assert results["test_accuracy"] == pytest.approx(ImageScore(*load_images("digits").split("test"))(merged))
    assert results["largest_relative_error_of_a_layer"] == 0
    card = ModelCard.load(tmp_path / "soup" / "README.md")
    assert "the products of the factors), not over the factors" in str(card)
    assert "do not name a base model on the Hub" in str(card)
    assert str(adapters) not in (tmp_path / "soup" / "adapter_config.json").read_text()  # where the base lies here
    assert card.data.library_name == "peft"


@quiet_peft
def test_a_soup_of_adapters_at_a_rank_measures_what_it_writes(adapters, tmp_path, hf_sane_command):
    hf_sane_command("soup", adapters / "in", "--rank", 1, "--images", "digits", "-o", tmp_path / "soup")
    results = RunRecord.load(tmp_path / "soup" / "run.json").results
    assert results["rank"] == 1
    assert results["largest_relative_error_of_a_layer"] > 0
    base = AutoModelForImageClassification.from_pretrained(adapters / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "soup").merge_and_unload()
    assert results["test_accuracy"] == pytest.approx(ImageScore(*load_images("digits").split("test"))(merged))


def test_an_adapter_without_a_base_needs_one(adapters, tmp_path, hf_sane_command):
    for index in range(2):
        shutil.copytree(adapters / "in" / f"run_{index}", tmp_path / "in" / f"{index}")
        path = tmp_path / "in" / f"{index}" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    refused = hf_sane_command("soup", tmp_path / "in", "-o", tmp_path / "soup", exit_code=2)
    assert "0 does not name its base model; pass it (--base)" in refused.stderr
    hf_sane_command("soup", tmp_path / "in", "--base", adapters / "base", "-o", tmp_path / "other")
    assert (tmp_path / "other" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (
                "--method",
                "greedy",
            ),
            "a greedy soup is selected on held-out data, got none",
        ),
        (("--condition",), "re-estimated from training images, got none"),
        (("--rank", 2), "--rank and --base are for LoRA adapters"),
        (("--base", "someone/base"), "--rank and --base are for LoRA adapters"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message, folder, tmp_path, hf_sane_command):
    refused = hf_sane_command("soup", folder, *arguments, "-o", tmp_path / "soup", exit_code=2)
    assert message in refused.stderr


def test_ingredients_that_do_not_fit_are_refused(folder, adapters, tmp_path, hf_sane_command):
    one, two = folder / "network_0", folder / "network_1"

    def refused(*sources):
        return hf_sane_command("soup", *sources, "-o", tmp_path / "soup", exit_code=2).stderr

    assert "a list of at least two checkpoints, got 1" in refused(one)
    assert "expected checkpoints or LoRA adapters, not both" in refused(one, adapters / "in" / "run_0")
    build_model(cnn_digits(num_labels=7)).save_pretrained(tmp_path / "seven")
    assert "different" in refused(one, tmp_path / "seven")
    broken = load_file(two / "model.safetensors")
    broken["hidden.0.weight"][0] = torch.nan
    shutil.copytree(two, tmp_path / "broken")
    save_file(broken, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    assert "not finite" in refused(one, tmp_path / "broken")
    for source in (one, two):
        shutil.copyfile(source / "model.safetensors", tmp_path / f"{source.name}.safetensors")
    files = [tmp_path / f"{source.name}.safetensors" for source in (one, two)]
    assert "has no config.json, so its architecture is unknown" in refused(*files)
    assert "no such file or folder" in refused(one, tmp_path / "missing")
    with_adapters = hf_sane_command("soup", adapters / "in", "--align", "-o", tmp_path / "soup", exit_code=2)
    assert "adapters of one base model need neither --align nor --condition" in with_adapters.stderr


def test_folders_of_networks_are_opened(folder, local_hub):
    local_hub.storage.add_files("models", "someone/model", {"config.json": b"{}"})
    assert networks_in(str(folder), SourceSettings()) == sorted(folder.iterdir())
    for one in (str(folder / "network_0"), "someone/model"):
        assert networks_in(one, SourceSettings()) == [one]
