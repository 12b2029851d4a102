import re

import pytest
from huggingface_hub import ModelCard
from transformers import LlamaConfig

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.hub._cards import soup_card
from hf_sane.hub._soups import save_soup
from hf_sane.records._run_record import RunRecord

IMAGES = {"name": "digits", "mean": [0.3], "std": [0.4]}


def record_of(rows, **arguments):
    record = RunRecord.start(seed=0, arguments={"recipe": "greedy", "metric": "accuracy"} | arguments)
    results = {"ingredients": rows, "validation_accuracy": 0.9, "test_accuracy": 0.8, "best_ingredient": "some/b"}
    return record.finish(results, data={"images": IMAGES})


@pytest.fixture
def rows():
    return {
        "some_one/a_b": {"weight": 0.5, "held_out_score": 0.875},
        "some/b@later": {"weight": 0.5, "held_out_score": 0.75},
        "some/c": {"weight": 0.0, "held_out_score": 0.5},
        "local_run": {"weight": 0.0, "held_out_score": 0.25},
    }


def test_the_card_tells_every_ingredient_and_its_weight(rows):
    card = soup_card(
        cnn_digits(), record_of(rows, aligned=True, recalibrated=True), repo_id="me/soup", license_id="mit"
    )
    text = str(card)
    for line in ("| some_one/a_b | 0.5 | 0.875 |", "| some/c | 0 | 0.5 |", "| local_run | 0 | 0.25 |"):
        assert line in text
    assert "2 of 4 cnn networks" in text
    assert "aligned by weight matching" in text
    assert "Batch-norm statistics were re-estimated" in text
    assert "standardised as" in text
    assert 'from_pretrained("me/soup")' in text
    assert card.data.base_model == ["some_one/a_b", "some/b"]
    assert card.data["base_model_relation"] == "merge"
    assert [result.metric_value for result in card.data.eval_results] == [0.8, 0.9]
    assert ModelCard(text).data.license == "mit"


def test_a_uniform_soup_without_data_says_so(rows):
    rows = {"run_0": {"weight": 0.5}, "run_1": {"weight": 0.5}}
    record = RunRecord.start(seed=0, arguments={"recipe": "uniform"}).finish({"ingredients": rows})
    card = soup_card(cnn_digits(), record)
    assert "no ingredients were selected" in str(card)
    assert "held-out" not in str(card).partition("## Intended use")[0]
    assert card.data.base_model is None
    assert card.data.eval_results is None


def test_the_card_of_an_adapter_loads_it_onto_its_base(rows):
    adapter = {"r": 4, "lora_alpha": 4, "target_modules": ["classifier"], "base_model_name_or_path": "some/base"}
    card = soup_card(cnn_digits(), record_of(rows), repo_id="me/soup", adapter=adapter)
    assert 'AutoModelForImageClassification.from_pretrained("some/base")' in str(card)
    assert 'PeftModel.from_pretrained(network, "me/soup")' in str(card)
    assert (card.data.base_model, card.data["base_model_relation"]) == (["some/base"], "adapter")
    assert "| r | 4 |" in str(card)
    unnamed = soup_card(cnn_digits(), record_of(rows), adapter=adapter | {"base_model_name_or_path": None})
    assert "```python" not in str(unnamed)
    assert "do not name a base model on the Hub" in str(unnamed)


def test_adapters_of_a_model_that_is_no_classifier_are_loaded_onto_it(rows):
    adapter = {"r": 4, "base_model_name_or_path": "some/base"}
    config = LlamaConfig(architectures=["LlamaForCausalLM"])
    (code,) = re.findall(
        r"```python\n(.*?)```", str(soup_card(config, record_of(rows), adapter=adapter)), flags=re.DOTALL
    )
    assert code.splitlines() == [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("some/base")',
        'model = PeftModel.from_pretrained(model, ".").merge_and_unload()  # an ordinary model again',
    ]


def test_files_of_the_first_ingredient_travel_along(rows, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("preprocessor_config.json", "tokenizer.json", "notes.txt"):
        (tmp_path / "in" / name).write_text("{}")
    save_soup(tmp_path / "soup", build_model(cnn_digits()), record_of(rows), files_from=tmp_path / "in")
    files = {path.name for path in (tmp_path / "soup").iterdir()}
    assert files == {
        *("README.md", "config.json", "model.safetensors", "run.json"),
        *("preprocessor_config.json", "tokenizer.json", "hf_sane_manifest.json"),
    }
