"""The cards in model_cards/ say what the demo's run record says, and the code on each of them runs."""

import re
import shutil
from pathlib import Path

import pytest
import update_cards
from transformers import AutoConfig, AutoModelForImageClassification

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._outputs import check_finished
from hf_sane.zoo._facts import read_facts

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "model_cards").rglob("README.md"))


def artefact(card, folder, tiny_zoo):
    """What a card stands in, with weights of no training."""
    shutil.copytree(card.parent, folder, dirs_exist_ok=True)
    if card.parent.name.startswith("sane"):
        SANEModel(SANEConfig.from_pretrained(folder)).save_pretrained(folder)
    elif card.parent.name.endswith("zoos"):
        shutil.rmtree(folder)
        tiny_zoo.save(folder, next(iter(read_facts(card.parent))))
    else:
        AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of what the script changes."""
    (tmp_path / "runs").symlink_to(ROOT / "runs")
    for name in ("model_cards", "pretrained", update_cards.PACKAGED):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setattr(update_cards, "ROOT", tmp_path)
    return tmp_path


def test_cards_say_what_the_record_says():
    assert update_cards.main(["--check"]) == 0


def test_an_outdated_card_is_found_and_written(root, capsys):
    page = root / "model_cards/sane/README.md"
    before = page.read_text()
    page.write_text(before.replace("| reconstruction r2 |", "| reconstruction r2 (invented) |"))
    assert update_cards.main(["--check"]) == 1
    assert "out of date: model_cards/sane/README.md" in capsys.readouterr().out
    (root / "model_cards/paper_zoos/zoo.json").write_text("{}")
    cards = ROOT / "model_cards"
    assert update_cards.main(["--demo", str(cards), "--zoo", str(cards / "paper_zoos")]) == 0
    assert page.read_text() == before


@pytest.mark.parametrize("name", ["pretrained/sane-usps", update_cards.PACKAGED])
def test_manifests_of_committed_models_are_made_anew(name, root, capsys):
    assert update_cards.main(["--check"]) == 0
    tokenizer = root / name / "preprocessor_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(InvalidFileError, match="preprocessor_config"):
        check_finished(tokenizer.parent)
    assert update_cards.main(["--check"]) == 1
    assert update_cards.main([]) == 0
    assert f"wrote: {name}/hf_sane_manifest.json" in capsys.readouterr().out
    check_finished(tokenizer.parent)


def test_models_of_the_results_are_taken_and_rendered(root, capsys):
    shutil.rmtree(root / "model_cards/paper_models")
    shutil.rmtree(root / "pretrained")
    assert update_cards.main(["--models", str(ROOT / "pretrained")]) == 0
    printed = capsys.readouterr().out
    for name in ("sane-usps", "sampled-usps"):
        assert f"wrote: model_cards/paper_models/{name}/README.md" in printed
        kept = {path.name for path in (root / "model_cards/paper_models" / name).iterdir()}
        left = {"model.safetensors", "hf_sane_manifest.json"}
        left |= {"preprocessor_config.json"} if name == "sampled-usps" else set()  # cards of networks need none
        assert kept == {path.name for path in (ROOT / "pretrained" / name).iterdir()} - left
        pages = [folder / name / "README.md" for folder in (root / "model_cards/paper_models", ROOT / "pretrained")]
        assert pages[0].read_text() == pages[1].read_text()


def test_there_are_cards():
    found = {card.parent.relative_to(ROOT / "model_cards").as_posix() for card in CARDS}
    families = ("mnist", "fashion", "usps", "cifar10", "resnet20")
    models = {f"paper_models/{kind}-{family}" for kind in ("sane", "sampled") for family in families}
    assert found == {"sane", "sampled/network_0", "zoos", "paper_zoos", *models}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_the_code_of_a_card_runs(card, tmp_path, tiny_zoo, monkeypatch):
    folder = tmp_path / "artefact"
    artefact(card, folder, tiny_zoo)
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}
    exec(compile(code.replace("PATH_OR_REPO", str(folder)), str(card), "exec"), names)
    assert names.keys() & {"decoded", "predicted", "tokens"}
