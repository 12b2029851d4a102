"""LoRA on SANE: only the adapter learns, runs resume to the last bit, and what is saved merges to what was trained."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from pretraining_runs import train
from program import parse_settings
from safetensors.torch import load_file

from hf_sane.core._adapters import adapter_size, load_adapter, read_adapter_config, save_adapter
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._manifests import MANIFEST
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import evaluate_reconstruction, r2_from_sums
from hf_sane.training._lora import LORA_TARGETS, add_lora
from hf_sane.training._preparation import fit_extractor
from hf_sane.training._settings import PretrainSettings

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "adapters.md"


def tiny_model(**changes):
    torch.manual_seed(0)
    settings = {"token_dim": 73, "hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return SANEModel(SANEConfig(**settings | {"window_size": 52, "max_positions": [52, 5, 20]} | changes))


def window():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 6, 73, generator=generator), torch.randint(0, 5, (3, 6, 3), generator=generator)


@pytest.fixture(scope="module")
def sane_folder(tmp_path_factory, tiny_zoo):
    folder = tmp_path_factory.mktemp("lora") / "sane"
    tiny_model(latent_noise=0.1).save_pretrained(folder)
    fit_extractor([tiny_zoo.splits["train"]], "standardize").save_pretrained(folder)
    return folder


def settings(output, sane_folder, **changes):
    defaults = {
        "zoo": ["unused"],
        "output": str(output),
        "from_": str(sane_folder),
        "lora": True,
        "lora_rank": 2,
        "base": "org/sane",
        "batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "num_permutations": 5,
        "eval_every_epochs": 0,
        "log_with": "none",
        "progress_bar": False,
    }
    return PretrainSettings(**defaults | changes)


def load(sane_folder, folder):
    return load_adapter(SANEModel.from_pretrained(sane_folder), folder).eval()


def test_default_targets_are_all_linear_maps_but_the_head():
    model = tiny_model()
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = add_lora(model, rank=2, alpha=4)
    found = {name.removeprefix("base_model.model.") for name, m in adapted.named_modules() if hasattr(m, "lora_A")}
    assert found == {name for name in linear if not name.startswith("projection_head.")}
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text()))
    tables = {name.rpartition(".")[2] for name, module in model.named_modules() if name}
    assert set(LORA_TARGETS) <= documented
    assert {"encoder_positions", "decoder_positions", "attention_norm", "mlp_norm"} <= documented & tables


def test_only_the_adapter_learns_and_it_starts_as_nothing():
    model = tiny_model()
    tokens, positions = window()
    before, weights = model(tokens, positions).reconstruction, {k: v.clone() for k, v in model.state_dict().items()}
    adapted = add_lora(model, rank=2, alpha=4, targets=["q_proj", "v_proj"], trained=["decoder_positions"])
    assert torch.equal(adapted(tokens, positions).reconstruction, before)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(tokens=tokens, positions=positions).loss.backward()
        optimizer.step()
    assert not torch.allclose(adapted(tokens, positions).reconstruction, before)
    plain = {
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", ""): value
        for name, value in adapted.state_dict().items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    assert plain.keys() == weights.keys()
    assert all(torch.equal(plain[name], weights[name]) for name in weights)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, SANEModel)
    assert not torch.equal(
        merged.decoder_positions.token_table.weight, weights["decoder_positions.token_table.weight"]
    )


def test_merging_gives_the_outputs_of_the_adapter(tmp_path):
    adapted = add_lora(tiny_model(), rank=3, alpha=4, trained=["encoder_positions"])
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(adapted, tmp_path / "adapter", base_model=None, base=tiny_model())
    tokens, positions = window()
    expected = adapted.eval()(tokens, positions)
    loaded = load_adapter(tiny_model(), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(tokens, positions).latents, expected.latents)
    merged = loaded.merge_and_unload()
    assert torch.allclose(merged(tokens, positions).latents, expected.latents, atol=1e-5)
    assert torch.allclose(merged(tokens, positions).reconstruction, expected.reconstruction, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == tiny_model().state_dict().keys()


def test_names_that_mean_nothing():
    with pytest.raises(
        ValueError, match=r"SANEModel has no module called \['query'\]; its linear layers are \['fc_in'"
    ):
        add_lora(tiny_model(), rank=2, alpha=4, targets=["q_proj", "query"])
    with pytest.raises(ValueError, match=r"no module called \['projection_head'\]"):
        add_lora(tiny_model(), rank=2, alpha=4, trained=["projection_head"])


def test_a_run_leaves_an_adapter_that_reconstructs_better(tmp_path, tiny_zoo, sane_folder):
    arguments = settings(tmp_path / "run", sane_folder, max_steps=40, views=["permuted"], noise=0.0, lora_rank=4)
    _, result = train(arguments, tiny_zoo)
    expected = {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json", "run.json", MANIFEST}
    assert {path.name for path in result.folder.iterdir()} == expected
    config = read_adapter_config(result.folder)
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("org/sane", 4, 8.0)
    split = tiny_zoo.splits["validation"]
    extractor = SANEFeatureExtractor.from_pretrained(result.folder)
    adapted = load(sane_folder, result.folder)

    def r2(model):
        return r2_from_sums(evaluate_reconstruction(model, extractor, split, range(len(split))))

    assert r2(adapted) == pytest.approx(result.reconstruction_r2, abs=1e-6)
    assert r2(adapted) > r2(SANEModel.from_pretrained(sane_folder).eval())
    record = RunRecord.load(result.folder / "run.json")
    assert record.results["adapter"] == adapter_size(adapted)
    assert r2(adapted.merge_and_unload()) == pytest.approx(result.reconstruction_r2, abs=1e-5)


def test_an_interrupted_run_resumes_to_the_last_bit(tmp_path, tiny_zoo, sane_folder):
    changes = {"checkpoint_every_steps": 2, "lora_trained": ["encoder_positions"]}
    whole, finished = train(settings(tmp_path / "whole", sane_folder, **changes), tiny_zoo)
    before, nothing = train(settings(tmp_path / "cut", sane_folder, **changes), tiny_zoo, stop_after=3)
    assert nothing is None
    after, resumed = train(settings(tmp_path / "cut", sane_folder, resume=True, **changes), tiny_zoo)
    assert before[:2] + after == whole
    expected, got = (load_file(run.folder / "adapter_model.safetensors") for run in (finished, resumed))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    with pytest.raises(ValueError, match="other settings of lora_rank"):
        train(settings(tmp_path / "cut", sane_folder, resume=True, lora_rank=3, **changes), tiny_zoo)


def test_behavioural_loss_and_recomputed_activations_work_with_an_adapter(tmp_path, tiny_zoo, sane_folder):
    changes = {"behavior_weight": 0.5, "behavior_data": "digits", "behavior_models": 4, "max_steps": 3}
    plain, _ = train(settings(tmp_path / "plain", sane_folder, **changes), tiny_zoo)
    again, _ = train(settings(tmp_path / "again", sane_folder, activation_checkpointing=True, **changes), tiny_zoo)
    assert plain == pytest.approx(again, rel=1e-5)


def test_the_base_is_the_id_that_was_given(sane_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {"zoo": ["zoo"], "output": "run", "lora": True}
    assert PretrainSettings(**needed, from_="org/sane").base_model == "org/sane"
    assert PretrainSettings(**needed, from_=str(sane_folder)).base_model is None
    assert PretrainSettings(**needed, from_=str(sane_folder), base="org/sane").base_model == "org/sane"
    flags = (
        "--zoo zoo --output_dir run --lora --from org/sane --lora-rank 3 --lora_alpha 5 --lora-targets q_proj v_proj"
    )
    parsed = parse_settings(PretrainSettings, flags.split(), name="pretrain.py")
    assert (parsed.from_, parsed.lora, parsed.lora_rank, parsed.lora_alpha) == ("org/sane", True, 3, 5.0)
    assert parsed.lora_targets == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from_": None}, r"lora needs a pretrained model to adapt; give its folder or Hub repo id \(--from\)"),
        ({"lora_targets": []}, r"expected names of modules in lora_targets, got none; such as \['q_proj'"),
        ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
        ({"lora_alpha": 0.0}, "lora_alpha must be positive, got 0.0"),
        ({"base": "/a/local/path"}, "expected the Hub repo id of the base model, got '/a/local/path'"),
    ],
)
def test_settings_that_make_no_adapter(changes, message):
    defaults = {"zoo": ["zoo"], "output": "run", "lora": True, "from_": "org/sane"}
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        PretrainSettings(**defaults | changes)
