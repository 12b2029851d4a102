"""The page on rates says what its records say: on an invented record whose answer is known."""

import json

import pytest
from rates import one_network
from results import rates as page

from hf_sane.models.configuration_linear import LinearCodeConfig
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.sampling import NetworkCodec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


def point(latents, bits, accuracy, agreement):
    return {
        "bits_per_weight": latents * bits,
        "latents_per_weight": latents,
        "bits_per_latent": bits,
        "accuracy": [accuracy, accuracy],
        "agreement": [agreement, agreement],
    }


@pytest.fixture
def folder(write_record):
    """Two networks of accuracy .8: at half a latent per weight SANE keeps all, the linear code half, of 8 bits."""
    codes = {
        "sane": [point(0.5, 8, 0.8, 0.9), point(0.5, 4, 0.6, 0.7)],
        "linear": [point(0.5, 8, 0.4, 0.5), point(0.5, 4, 0.4, 0.45)],
        "rounded": [point(1, 8, 0.8, 1.0)],
    }
    results = {
        "codes": codes,
        "rates": {"1/2": {"latent_dim": 5, "grouping": "layer"}},
        "original_accuracy": [0.8, 0.8],
        "chance": 0.1,
    }
    networks = {"train": 1200, "validation": 2, "test": 2}
    arguments = {"hidden_size": 64, "epochs": 3}
    return write_record("rates/usps_seed_0", results, arguments=arguments, data={"networks": networks})


def test_every_rate_and_area_of_a_record(folder):
    found = page.blocks(folder)
    assert "| 1/2 | 5 | 8 | 1.000 | 0.900 | 0.500 | 0.500 | per layer |" in found["rates"]
    assert "| 1/2 | 5 | 4 | 0.750 | 0.700 | 0.500 | 0.450 | per layer |" in found["rates"]
    assert "| 8 | 1.000 | 1.000 |" in found["rates"]
    # From 1/4 to 2 bits chance (.125 of the accuracy), then .75 for one doubling and 1 for another: 3, 1 and 1 of 5.
    area = f"{(3 * 0.125 + 0.75 + 1) / 5:.3f}"
    assert f"| USPS, CNN-s, seeds | SANE | {area} ({area} to {area}) |" in found["areas"]
    assert f"SANE has the largest area under accuracy kept ({area}), then the linear code" in found["verdict"]
    assert "the intervals of SANE and the linear code do not overlap" in found["verdict"]


def test_without_records_there_is_nothing_to_say(tmp_path):
    assert set(page.blocks(tmp_path).values()) == {""}


def test_sanes_that_keep_predictions_have_a_record_of_their_own(folder):
    records = folder / "runs/paper/rates"
    (records / "usps_seed_behavior_0.json").write_text((records / "usps_seed_0.json").read_text())
    assert list(page.load_records(records)) == ["usps_seed", "usps_seed_behavior"]
    shown = page.blocks(folder)["areas"]
    assert shown.count("| USPS, CNN-s, seeds | SANE |") == 1
    assert shown.count("| USPS, CNN-s, seeds; SANE trained to keep predictions | SANE |") == 1


@pytest.mark.parametrize(("agreement", "told"), [(0.95, "no more than"), (0.85, "more than")])
def test_a_code_is_compared_with_one_network_for_all(agreement, told, folder):
    path = folder / "runs/paper/rates/usps_seed_0.json"
    record = json.loads(path.read_text())
    record["results"]["one_network"] = point(0, 0, 0.76, agreement)
    path.write_text(json.dumps(record))
    found = page.blocks(folder)
    assert f"at most 0.900 of the images, {told} those of one training network in place of all" in found["verdict"]
    assert f"without any bits: accuracy kept 0.950, agreement {agreement:.3f}." in found["rates"]


def test_one_network_for_all_is_the_best_on_validation_images(tiny_zoo, digits):
    split = tiny_zoo.splits["train"].final_epochs()
    layout, config = split.layout_and_config()
    tokens = split.stacked_tokens()
    size = layout.token_dim
    code = LinearCode(LinearCodeConfig(token_dim=size, latent_dim=size, grouping="all")).eval()
    codec = NetworkCodec(code, SANEFeatureExtractor(size), layout, config)
    found = one_network(codec, tokens, tokens, digits.split("validation"), digits.split("test"))
    best = int(codec.networks(tokens).evaluate(*digits.split("validation"))[1].argmax())
    assert found.bits_per_weight == 0
    assert found.agreement[best] == 1
    assert found.accuracy == pytest.approx([split.column("test_accuracy")[best]] * len(tokens), abs=1e-6)
