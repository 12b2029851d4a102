"""The page on families says what its records say; codes, search and prediction do what their names say."""

import children_prompts
import pytest
import torch
from results import children


def prompt_results(**accuracy):
    chosen = {
        name: {"settings": {"rate": 0.1, "steps": [5]}, "accuracy": values[0]} for name, values in accuracy.items()
    }
    return {"chosen": chosen, "accuracy": {name: [values, values] for name, values in accuracy.items()}}


@pytest.fixture
def folder(write_record):
    """Four networks of two combinations; SANE is best with one image per class, the nearest child otherwise."""
    structure = {"directions": [1, 4, 16, 20], "explained": [0.1, 0.2, 0.5, 0.6], "chance": [0.0, 0.1, 0.2, 0.3]}
    point = {"bits_per_weight": 0.5, "latents_per_weight": 0.125, "bits_per_latent": 4}
    results = {
        "structure": {
            "seeds": structure,
            "children_few": [structure],
            "children": [structure, {**structure, "explained": [0.1, 0.2, 0.7, 0.6]}],
            "all_children": structure,
        },
        "rates": {"whole16": {"points": [{**point, "accuracy": [0.4, 0.4], "agreement": [0.5, 0.7]}]}},
        "references": {"ancestor": [0.2] * 4, "mean_child": [0.3] * 4, "child": [0.8] * 4},
        "combinations": ["rotation+blur", "rotation+blur", "scale+shear", "scale+shear"],
        "prompts": {
            "unlabelled": prompt_results(nearest=[0.5] * 4, kernel_whole16=[0.3] * 4, kernel_sane8=[0.4] * 4),
            "shots_1": prompt_results(
                nearest=[0.5] * 4, search_whole16=[0.6] * 4, search_sane8=[0.7, 0.7, 0.8, 0.8], finetuned=[0.6] * 4
            ),
            "shots_5": prompt_results(
                nearest=[0.9] * 4, search_whole16=[0.6] * 4, search_sane8=[0.7] * 4, finetuned=[0.8] * 4
            ),
        },
    }
    return write_record(
        "children/usps_0", results, arguments={"seeds": 30}, data={"networks": {"train": 100, "judged_test": 4}}
    )


def test_the_page_names_the_winners_and_the_paired_differences(folder):
    found = children.blocks(folder)
    assert (
        "Of 3 cells (kind of prompt and data set), a method with SANE is best in 1, one with the linear"
        in (found["verdict"])
    )
    assert "No method with SANE is the best" not in found["verdict"]
    row = "| 20 unlabelled images | USPS | nearest child (0.500) | kernel ridge to the latents of SANE (0.400) |"
    signed = f"{row} +0.100, +0.100 to +0.100 | -0.100, -0.100 to -0.100 |  | -0.200"
    assert signed.replace("-", "\N{MINUS SIGN}") in found["verdict"]
    assert (
        "| 5 images per class | USPS | nearest child (0.900) | fine-tuning of the ancestor (0.800) |"
        in found["verdict"]
    )
    assert "reached on 1 of 1 data sets" in found["verdict"]  # .15 above fine-tuning and the linear code
    assert "| search in the latents of SANE |  | 0.750 (+0.150, +0.100 to +0.200) |" in found["prompts"]
    assert "| USPS | children of one ancestor, all | 0.200 (0.100) | 0.600 (0.200) |  |" in found["structure"]
    assert "| USPS | linear code, whole networks, 4 bits | 0.1250 | 0.500 | 0.400 | 0.500 | 0.600 |" in found["rates"]
    assert "| USPS | 1 image per class | fine-tuning of the ancestor | rate 0.1, steps 5 | 0.600 |" in found["chosen"]
    assert "commit 0123456789ab" in found["source"]


def test_reptile_is_the_mean_of_its_seeds_against_rivals_on_the_same_images(write_record):
    rivals = {name: [0.5, 0.5, 0.7, 0.7] for name in children.REPTILE if name != "reptile"}
    seeds = {"reptile_0": [0.7] * 4, "reptile_1": [0.8] * 4, "reptile_2": [0.9] * 4}
    shots = prompt_results(**seeds, **rivals)
    results = {"prompts": {"shots_1": shots, "shots_5": shots}, "combinations": ["a", "a", "b", "b"]}
    found = children.blocks(write_record("reptile/usps_0", results))["reptile"]
    row = "| fine-tuning of the start that Reptile learned, mean of three seeds | 0.800 |  | 0.800 |  |"
    assert row in found
    assert "| nearest child | 0.600 | +0.200, +0.100 to +0.300 | 0.600 | +0.200, +0.100 to +0.300 |" in found
    assert "on 2 held-out combinations" in found
    assert "Seeds of Reptile: 1 image per class: 0.700, 0.800, 0.900; 5 images" in found


def test_without_records_there_is_nothing_to_say(tmp_path):
    assert set(children.blocks(tmp_path).values()) == {""}


def test_codes_and_predictions_of_changes(family):
    zoo, data = family
    found = children_prompts.Family.open(zoo)
    train = found.splits["train"]
    networks = found.networks(train.ancestor, train.changes)
    examples = children_prompts.draw_examples(data, "test", train.shifts, count=200, seed=3)
    stored = children_prompts.children_of(zoo.splits["train"]).column("test_accuracy")
    torch.testing.assert_close(examples.accuracy(networks), torch.from_numpy(stored.copy()), atol=0.12, rtol=0)
    code = children_prompts.WholeCode.fit(train, 2, len(train))  # more directions than children: nothing is lost
    latents = code.encode(train.changes, train.ancestor)
    torch.testing.assert_close(code.decode(latents, train.ancestor), train.changes, atol=1e-4, rtol=1e-3)
    known = children_prompts.Prompts.draw(found, data, per_class=1)
    own = [block[: len(train)] for block in known.blocks]  # the first prompt of each training child
    predicted = known.predict(own, train.ancestor, train.changes, width=0.2, ridge=1e-4)
    assert (predicted - train.changes).square().mean() < 0.3 * train.changes.square().mean()
    torch.testing.assert_close(known.nearest(own, train.ancestor), train.changes)
    assert sum(map(len, found.splits.values())) == 16
    changed = children_prompts.zoo_of_changes(zoo, found)
    torch.testing.assert_close(changed.splits["train"].stacked_tokens(), train.changes)


def test_search_lowers_the_loss_of_every_network_and_relatives_fit(family):
    zoo, data = family
    found = children_prompts.Family.open(zoo)
    held_out, train = found.splits["test"], found.splits["train"]
    examples = children_prompts.draw_examples(data, "validation", held_out.shifts, per_class=2, seed=5)
    for row, shift in enumerate(held_out.shifts):
        assert set(examples.labels[row][examples.weights[row] > 0].tolist()) == set(shift.classes or range(10))
    start = torch.zeros_like(held_out.changes)
    before = examples.losses(found.networks(held_out.ancestor, start))
    for code, rate in ((children_prompts.Weights(), 1e-2), (children_prompts.WholeCode.fit(train, 2, 4), 0.1)):
        (changes,) = children_prompts.search(
            found, code, held_out.ancestor, start, examples, rate=rate, scale=1.0, steps=(10,)
        )
        assert (examples.losses(found.networks(held_out.ancestor, changes)) < before).all()
    relatives = children_prompts.best_relatives(found, held_out.ancestor, examples)
    assert (examples.losses(found.networks(held_out.ancestor, relatives[1])) <= before + 1e-5).all()
