"""Tokens of the Hub disappear, by their form or because the environment knows them; everything else stays."""

import pytest

from hf_sane.records._redaction import hide_folders, hide_folders_in, holds_token, redact_tokens
from hf_sane.records._run_record import RunRecord

TOKEN = "hf_" + "aB3" * 12


def test_tokens_are_known_by_their_form():
    assert redact_tokens(f"--token={TOKEN} --x") == "--token=hf_*** --x"
    assert holds_token(f'"{TOKEN}"')


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_tokens_of_the_environment_are_known_whatever_they_look_like(name, monkeypatch):
    text = "a my-own-secret-token b"
    assert redact_tokens(text) == text
    monkeypatch.setenv(name, "my-own-secret-token")
    assert redact_tokens(text) == "a hf_*** b"


@pytest.mark.parametrize(
    "text", ["hf_sane", "hf_sane_is_a_library_with_a_rather_long_name_for_a_token", "hf-sane push", ""]
)
def test_names_are_no_tokens(text, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "push")  # too short to be told from a word
    assert redact_tokens(text) == text
    assert not holds_token(text)


def test_a_run_record_does_not_hold_the_token_it_was_started_with(tmp_path):
    record = RunRecord.start(command=["hf-sane", "push", "--token", TOKEN])
    assert TOKEN not in record.save(tmp_path / "run.json").read_text()
    assert record.command == "hf-sane push --token 'hf_***'" or record.command.endswith("hf_***")


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("hf-sane sample --zoo /home/ann/zoo@a -o out --sane=/h/b/c", "hf-sane sample --zoo zoo@a -o out --sane=c"),
        ("hf-sane soup '/home/my user/a' -o b", "hf-sane soup 'a' -o b"),
        ("mix a=/home/ann/zoo@default", "mix a=zoo@default"),
        ("/home/my user/zoo", "zoo"),
        ("/home/ann/zoo/", "zoo"),
        ("/home/ann/zoo:default", "zoo:default"),
        ("file:///home/ann/zoo", "zoo"),
        ("C:\\Users\\ann\\zoo", "zoo"),
    ],
)
def test_of_absolute_paths_the_name_is_left(text, shared):
    assert hide_folders(text) == shared


@pytest.mark.parametrize(
    "text", ["https://huggingface.co/a/b", "../x/y/z", "~/a/b", "org/name@main", "text/plain", "3/4", "/", "", "a / b"]
)
def test_other_texts_keep_their_slashes(text):
    assert hide_folders(text) == text


def test_folders_are_hidden_at_every_depth():
    facts = {"a": ["/h/ann/x", 1], "/h/ann/b": {"c": ("/h/y",)}, "d": {"/h/1/z": 1, "/h/2/z": 2}}
    assert hide_folders_in(facts) == {"a": ["x", 1], "b": {"c": ["y"]}, "d": {"/h/1/z": 1, "/h/2/z": 2}}
