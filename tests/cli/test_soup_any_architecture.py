"""`hf-sane soup` of networks that are not image classifiers."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_sane.records._run_record import RunRecord

SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 11}
WORDS = torch.arange(11)[None]


def llama(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()


@pytest.fixture
def llamas(tmp_path):
    for index in range(2):
        llama(index).save_pretrained(tmp_path / "in" / f"{index}")
        (tmp_path / "in" / f"{index}" / "tokenizer_config.json").write_text("{}")
    return tmp_path / "in"


def logits(model):
    with torch.no_grad():
        return model.eval()(WORDS).logits


def average(*models):
    states = [model.state_dict() for model in models]
    models[0].load_state_dict({name: sum(s[name] for s in states) / len(states) for name in states[0]})
    return models[0]


def test_language_models(llamas, tmp_path, hf_sane_command):
    printed = hf_sane_command("soup", llamas, "-o", tmp_path / "soup").output
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    torch.testing.assert_close(logits(found), logits(average(llama(0), llama(1))))
    rows = RunRecord.load(tmp_path / "soup" / "run.json").results["ingredients"]
    assert rows == {"0": {"weight": 0.5}, "1": {"weight": 0.5}}
    assert "dtypes differ" not in printed
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "README.md",
        "run.json",
    }
    assert names <= {path.name for path in (tmp_path / "soup").iterdir()}
    card = ModelCard.load(tmp_path / "soup" / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert 'model = AutoModelForCausalLM.from_pretrained(".")' in str(card)
    assert "pixel_values" not in str(card)


def test_classifiers_of_text(tmp_path, hf_sane_command):
    for index in range(2):
        BertForSequenceClassification(BertConfig(**SIZES)).save_pretrained(tmp_path / "in" / f"{index}")
    hf_sane_command("soup", tmp_path / "in", "-o", tmp_path / "soup")
    card = ModelCard.load(tmp_path / "soup" / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert "AutoModelForSequenceClassification" in str(card)


def test_a_reordered_copy_is_refused_unless_it_is_aligned(tmp_path, hf_sane_command):
    network = BertForSequenceClassification(BertConfig(**SIZES))
    network.save_pretrained(tmp_path / "bert")
    expected = load_file(tmp_path / "bert" / "model.safetensors")
    feed = network.bert.encoder.layer[0]
    order = torch.randperm(len(feed.intermediate.dense.bias))
    with torch.no_grad():
        for tensor, dim in (
            (feed.intermediate.dense.weight, 0),
            (feed.intermediate.dense.bias, 0),
            (feed.output.dense.weight, 1),
        ):
            tensor.copy_(tensor.index_select(dim, order))
    network.save_pretrained(tmp_path / "bert_permuted")
    folders = tmp_path / "bert", tmp_path / "bert_permuted"
    refused = hf_sane_command("soup", *folders, "-o", tmp_path / "soup", exit_code=2).stderr
    assert refused == (
        "hf-sane: bert and bert_permuted are the same network with its channels in another order, whose plain average "
        "computes something else; align them (--align), or compare them with hf-sane diff\n"
    )
    hf_sane_command("soup", *folders, "--align", "-o", tmp_path / "soup")
    found = load_file(tmp_path / "soup" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_dtypes_that_differ_are_said(llamas, tmp_path, hf_sane_command):
    for index, dtype in enumerate((torch.float16, torch.bfloat16)):
        llama(index).to(dtype).save_pretrained(llamas / f"{index}")
    printed = hf_sane_command("soup", llamas, "-o", tmp_path / "soup").output
    assert "dtypes differ (0 float16, 1 bfloat16): the soup uses float32, which can represent all values" in printed
    assert json.loads((tmp_path / "soup" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--method", "greedy", "--images", "digits"), "--images"),
        (("--images", "digits"), "--images"),
        (("--include-code",), "--include-code"),
    ],
)
def test_what_needs_images_says_so(arguments, named, llamas, tmp_path, hf_sane_command):
    refused = hf_sane_command("soup", llamas, *arguments, "-o", tmp_path / "soup", exit_code=2).stderr
    assert f"{named} require image classifiers, 0 is a LlamaForCausalLM; leave them out for a uniform soup" in refused
    assert "ViT" not in refused  # no list of all classes that would do
    assert not (tmp_path / "soup").exists()


@pytest.fixture
def adapters(tmp_path):
    llama(0).save_pretrained(tmp_path / "base")
    for index, layers in enumerate((["q_proj"], ["v_proj", "lm_head"])):
        torch.manual_seed(index)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model = get_peft_model(base, LoraConfig(r=2, target_modules=layers, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        model.save_pretrained(tmp_path / "adapters" / f"{index}", save_embedding_layers=False)
    return tmp_path


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("is_there", [True, False])
def test_adapters_of_language_models(is_there, adapters, tmp_path, hf_sane_command):
    """The base is needed for nothing but the card."""
    named = () if is_there else ("--base", "someone/elsewhere")
    hf_sane_command("soup", adapters / "adapters", *named, "-o", tmp_path / "soup")

    def merged(folder):
        base = AutoModelForCausalLM.from_pretrained(adapters / "base")
        return PeftModel.from_pretrained(base, folder).merge_and_unload()

    expected = average(*(merged(adapters / "adapters" / f"{index}") for index in range(2)))
    torch.testing.assert_close(logits(merged(tmp_path / "soup")), logits(expected), rtol=1e-4, atol=1e-5)
    card = ModelCard.load(tmp_path / "soup" / "README.md")
    assert card.data.pipeline_tag == ("text-generation" if is_there else None)
    refused = hf_sane_command(
        *(
            "soup",
            adapters / "adapters",
            *named,
            "--method",
            "greedy",
            "--images",
            "digits",
            "-o",
            tmp_path / "other",
        ),
        exit_code=2,
    ).stderr
    assert "--images requires adapters of image classifiers, their base" in refused


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_repositories(llamas, tmp_path, hf_sane_command, local_hub):
    api = HfApi()
    for index in range(2):
        api.create_repo(f"someone/llama-{index}")
        api.upload_folder(repo_id=f"someone/llama-{index}", folder_path=llamas / f"{index}")
    hf_sane_command("soup", "someone/llama-0", "someone/llama-1", "-o", tmp_path / "soup")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    torch.testing.assert_close(logits(found), logits(average(llama(0), llama(1))))
    assert ModelCard.load(tmp_path / "soup" / "README.md").data.base_model == ["someone/llama-0", "someone/llama-1"]
    assert (tmp_path / "soup" / "tokenizer_config.json").read_text() == "{}"
