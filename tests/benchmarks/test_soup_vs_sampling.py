"""The comparison of soups, sampling and ensembles, on the tiny zoo."""

import pytest
import soup_vs_sampling

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

ONE_NETWORK = {"greedy_soup", "ingredient_plus_noise", "sane_mean_latent", "sane_sampled", "uniform_soup"}


@pytest.fixture
def arguments(tiny_zoo, tiny_zoo_folder, tmp_path):
    train = tiny_zoo.splits["train"]
    SANEFeatureExtractor(token_dim=73).fit([train.state_dict(i) for i in range(4)]).save_pretrained(tmp_path / "sane")
    config = SANEConfig(
        token_dim=73, hidden_size=16, latent_dim=16, num_hidden_layers=1, num_attention_heads=2, window_size=52
    )
    SANEModel(config).save_pretrained(tmp_path / "sane")
    return ["--zoo", str(tiny_zoo_folder), "--sane", str(tmp_path / "sane"), "--images", "digits"]


def test_one_table_at_equal_numbers_of_ingredients(arguments, tmp_path):
    small = ["--ingredients", "2", "--draws", "2", "--num-candidates", "4", "--epochs", "1"]
    report = soup_vs_sampling.main([*arguments, *small, "--output", str(tmp_path / "record.json")])
    for population in ("independent", "fine_tuned"):
        rows = report[population]["2_ingredients"]
        assert rows.keys() > ONE_NETWORK | {"ensemble", "mean_ingredient", "best_ingredient"}
        assert all(0 <= value <= 1 for value in rows.values())
        assert report[f"{population}_std"]["2_ingredients"].keys() == rows.keys()
    assert RunRecord.load(tmp_path / "record.json").results == report


def test_more_ingredients_than_anchors_are_refused(arguments):
    with pytest.raises(ValueError, match="the zoo has 2 anchors, fewer than 5 ingredients"):
        soup_vs_sampling.main([*arguments, "--ingredients", "2", "5"])
