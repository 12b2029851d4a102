"""The card of a zoo says where its networks come from, for every kind of zoo."""

from dataclasses import replace

import pytest

from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._facts import ZooFacts

BUILT = ZooFacts(
    name="digits",
    layouts={str(index): {"token_layout": "rowwise", "token_dim": 9} for index in range(2)},
    architectures={"a": {"model_type": "sane_cnn", "conv_channels": [8, 6], "activation": "gelu_"}},
    arguments={"keep_epochs": [0, 5], "seed": 3, "learning_rate": [1e-3, 1e-2], "batch_size": 32},
    data={"name": "digits", "train": 1000, "test": 12000, "num_classes": 10},
    excluded=({"run_id": "1"},),
    splits={
        "train": {"runs": 3, "networks": 9, "test_accuracy": 0.5},
        "test": {"runs": 0, "networks": 0, "test_accuracy": 0.0},
    },
)
IMPORTED = ZooFacts(
    name="hub",
    layouts={},
    architectures={str(index): {"model_type": "imported", "config": {"model_type": "bert"}} for index in range(2)},
    arguments={"group_by": "family"},
    data={
        **{"repositories": 2, "networks": 4, "parted": 1, "metrics": ["metric_f1_"]},
        "licenses": {f"l-{index}": index for index in range(22)},
    },
    excluded=({"run_id": "1"}, {"run_id": "2"}),
    splits={"train": {"runs": 4, "networks": 4}},
)
PARTS = {facts.name: {"arguments": facts.arguments, "data": facts.data} for facts in (BUILT, IMPORTED)}
LICENCES = ", ".join(f"l-{index} ({index})" for index in range(20))
OF_BUILT = (
    "images: digits (1,000 train, 12,000 test; 10 classes)",
    "epochs kept: 0, 5; seed 3",
    "trained with: learning rate 0.001 to 0.01; batches of 32",
)
OF_IMPORTED = (
    "imported: 4 networks of 2 repositories; each row names its repository, revision and file",
    f"licences: {LICENCES} and 2 more (`zoo.json` has them); **each network keeps the licence of its repository**",
    "splits by family: networks that share their family are in one split",
    "**networks of 1 folder or repository are in different splits**, although they may come from one run",
    "columns with metrics from the cards of the networks: `metric_f1_`",
)


def section(text, title):
    """Lines under a heading."""
    (found,) = [part for part in text.split("\n## ") if part.startswith(title)]
    return found.replace("\n  ", " ").splitlines()[1:]


def test_a_zoo_that_was_built():
    assert section(zoo_card({"default": BUILT}), "digits") == [
        *("", *(f"- {line}" for line in OF_BUILT)),
        r"- architecture: `sane_cnn` with conv_channels [8, 6], activation gelu\_",
        "- tokens: rowwise, token_dim 9 (2 structures)",
        "- 1 run left out: not finite or diverged (`zoo.json` names them)",
        "",
        "| split | runs | networks | mean final test accuracy |",
        "| --- | ---: | ---: | ---: |",
        "| train | 3 | 9 | 0.500 |",
        "| test | 0 | 0 | - |",
    ]


def test_an_imported_zoo():
    text = zoo_card({"default": IMPORTED})
    assert section(text, "hub") == [
        *("", *(f"- {line}" for line in OF_IMPORTED)),
        "- architecture: imported: bert (2 structures)",
        "- 2 networks left out (`zoo.json` says why)",
        "",
        "| split | runs | networks |",
        "| --- | ---: | ---: |",
        "| train | 4 | 4 |",
    ]
    assert 'weights = zoo.splits["train"].state_dict(0)' in text
    assert "| `metric_*` | metrics from its card, not verified |" in text


def test_a_mixture_names_its_parts():
    lines = section(zoo_card({"both": replace(BUILT, data={"zoos": PARTS})}), "digits (`both`)")
    expected = [*(f"- `digits`, {line}" for line in OF_BUILT), *(f"- `hub`, {line}" for line in OF_IMPORTED)]
    assert lines[1 : 1 + len(expected)] == expected
    assert "- a mixture: the column `zoo` names the original zoo of each network; networks keep their splits" in lines


@pytest.mark.parametrize("source", ["me/zoo", "PATH_OR_REPO"])
def test_only_the_code_is_addressed(source):
    """Publishing replaced the placeholder in names, too."""
    text = zoo_card({"default": replace(BUILT, name="PATH_OR_REPO")}, source=source)
    assert f'zoo = Zoo.load("{source}")' in text
    assert "# Model zoo: PATH_OR_REPO" in text
    assert "pretty_name: 'Model zoo: PATH_OR_REPO'" in text
