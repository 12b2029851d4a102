"""Settings of an import: what is refused, and what is written down."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_sane.zoo.importing._settings import ImportSettings, parse_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to import: name repositories"),
        ({"repos": ["a/b"], "limit": 0}, "limit must be at least 1, got 0"),
        ({"repos": ["a/b"], "max_size": 0}, "max_size must be at least 1, got 0"),
        ({"repos": ["a/b"], "token_dim": 0}, "token_dim must be at least 1, got 0"),
        ({"repos": ["a/b"], "max_tokens": 0}, "max_tokens must be at least 1, got 0; leave it out"),
        ({"repos": ["a/b"], "seed": -1}, "seed must not be negative, got -1"),
        ({"repos": ["a/b"], "split_shares": [0.5, 0.5]}, "split_shares must be three shares that add up to 1"),
        ({"repos": ["a/b"], "split_shares": [0.5, 0.5, 0.5]}, "split_shares must be three shares that add up to 1"),
        (
            {"folder": "no/such/folder"},
            "folder must be an existing folder, or a tar or zip archive, got 'no/such/folder'",
        ),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(StrictDataclassClassValidationError) as caught:
        ImportSettings(**settings)
    assert message in str(caught.value.__cause__)


def test_mistyped_settings_are_refused():
    with pytest.raises(ValueError, match="expected group_by to be one of 'repository'"):
        ImportSettings(repos=["a/b"], group_by="family")
    with pytest.raises(TypeError, match="repositories"):
        ImportSettings(repositories=["a/b"])


def test_settings_do_not_tell_where_a_folder_lies(tmp_path):
    (tmp_path / "models").mkdir()
    found = ImportSettings(folder=str(tmp_path / "models")).to_dict()
    assert found["folder"] == "models"
    assert str(tmp_path) not in str(found)
    assert ImportSettings(repos=["a/b"]).to_dict()["folder"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1000", 1000), ("5B", 5), ("500MB", 500_000_000), ("1.5 GiB", 3 * 2**29), (" 2kb ", 2000), ("1MiB", 2**20)],
)
def test_sizes_as_people_write_them(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "5 apples", "-1MB", "1,5GB"])
def test_other_texts_are_no_sizes(text):
    with pytest.raises(ValueError, match="expected a size such as 500MB or 1.5GiB, got"):
        parse_size(text)
