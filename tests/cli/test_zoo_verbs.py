"""`hf-sane zoo build` and `hf-sane zoo show`."""

import json

import pytest

from hf_sane.zoo._dataset import Zoo

BUILD = (
    *("--num-models", 5, "--epochs", 1, "--train-limit", 64, "--validation-limit", 20, "--test-limit", 20),
    "--no-progress-bar",
)


def test_a_built_zoo_can_be_shown_and_is_not_built_twice(tmp_path, hf_sane_command):
    arguments = ("zoo", "build", "--output", tmp_path / "zoo", "--recipe", "seed", *BUILD)
    built = hf_sane_command(*arguments).output
    assert f"wrote {tmp_path / 'zoo'}" in built
    zoo = Zoo.load(tmp_path / "zoo")
    assert len(zoo) == 5 * 2
    assert zoo.facts.arguments["learning_rate"] == [3e-3]  # of the recipe
    shown = hf_sane_command("zoo", "show", tmp_path / "zoo").output
    assert shown.splitlines() == built.splitlines()[:-1]
    assert "52 rowwise tokens of 73 weights" in shown
    assert hf_sane_command(*arguments).output == built
    refused = hf_sane_command(*arguments, "--seed", 1, exit_code=2)
    assert "with other settings of seed" in refused.stderr


def test_a_folder_may_hold_several_zoos(tmp_path, hf_sane_command):
    for config in ("one", "two"):
        hf_sane_command("zoo", "build", "--output", tmp_path, "--zoo-config", config, *BUILD)
    assert "holds the zoos ['one', 'two']" in hf_sane_command("zoo", "show", tmp_path, exit_code=2).stderr
    assert "zoo digits" in hf_sane_command("zoo", "show", tmp_path, "--zoo-config", "two").output


@pytest.mark.parametrize("words", [("--zoo",), ("--zoo", "--json")])
def test_a_zoo_may_still_be_an_option_where_it_is_the_argument(words, tiny_zoo_folder, hf_sane_command):
    told = hf_sane_command("zoo", "show", words[0], tiny_zoo_folder, *words[1:])
    assert told.stdout == hf_sane_command("zoo", "show", tiny_zoo_folder, *words[1:]).stdout
    assert told.stderr == (
        "hf-sane zoo show: --zoo NAME is now NAME, without the option; the old spelling works until version 0.3\n"
    )


def test_a_zoo_that_is_no_option_where_it_should_be_is_refused_with_the_spelling(hf_sane_command):
    refused = hf_sane_command("probe", "my_zoo", "--sane", "my_sane", "--zoo", "other", exit_code=2).stderr
    assert "unexpected extra argument(s) (my_zoo); a zoo is named with --zoo; see hf-sane probe --help" in refused


def test_facts_are_also_json(tiny_zoo, tiny_zoo_folder, hf_sane_command):
    facts = json.loads(hf_sane_command("zoo", "show", tiny_zoo_folder, "--json").output)
    assert facts["is_aligned"]
    assert {name: split["networks"] for name, split in facts["splits"].items()} == {
        name: len(split) for name, split in tiny_zoo.splits.items()
    }
    smallest, median, largest = facts["splits"]["train"]["final"]["test_accuracy"]
    accuracy = tiny_zoo.splits["train"].final_epochs().column("test_accuracy")
    assert (smallest, largest) == (accuracy.min(), accuracy.max())
    assert smallest <= median <= largest
    assert len(facts["excluded"]) == len(tiny_zoo.facts.excluded)


def test_zoos_are_mixed(tiny_zoo_folder, tmp_path, hf_sane_command):
    output = hf_sane_command(
        "zoo", "mix", f"a={tiny_zoo_folder}", f"b={tiny_zoo_folder}@default", "--output", tmp_path, "--token-dim", 80
    ).output
    assert "zoo a + b" in output
    assert "tokens of 80 weights" in output
    assert len(Zoo.load(tmp_path).splits["test"]) == 2 * len(Zoo.load(tiny_zoo_folder).splits["test"])


def test_bad_names_of_zoos_to_mix(tiny_zoo_folder, tmp_path, hf_sane_command):
    for text in ("zoo", "=zoo", "a=", "a=@default"):
        output = hf_sane_command("zoo", "mix", text, "--output", tmp_path, exit_code=2).stderr
        assert f"expected NAME=SOURCE or NAME=SOURCE@CONFIG, got '{text}'" in output
    twice = hf_sane_command(
        "zoo", "mix", f"a={tiny_zoo_folder}", f"a={tiny_zoo_folder}", "--output", tmp_path, exit_code=2
    )
    assert "two zoos are called 'a'" in twice.stderr
