"""Window samplers: content, purity, coverage, views, several architectures, streams, errors."""

from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from window_samplers import new_sampler, stream_of

from hf_sane.core._augmentation import multiplicative_noise
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import ZooSplit
from hf_sane.zoo._facts import read_facts
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings
from hf_sane.zoo.windows._siblings import Siblings

PLAIN = {"noise": 0.0, "views": ("original",)}


def fit(*splits):
    return SANEFeatureExtractor(token_dim=73).fit([(split.layout(0), split.stacked_tokens()) for split in splits])


@pytest.fixture(scope="module")
def extractor(tiny_zoo):
    return fit(tiny_zoo.splits["train"])


@pytest.fixture(scope="module")
def mlp_zoo(tmp_path_factory, digits):
    """Another architecture with tokens of the same size: 12 tokens."""
    arguments = ZooSettings(
        architecture="mlp",
        architecture_settings={"hidden_sizes": [2]},
        num_models=5,
        epochs=1,
        token_dim=73,
        progress_bar=False,
    )
    return build_zoo(arguments, digits, tmp_path_factory.mktemp("mlp"))


def sampler(zoo, extractor, **settings):
    return new_sampler([zoo.splits["train"]], extractor, **{"window_size": 52, "batch_size": 8, **settings})


@pytest.mark.parametrize("window_size", [1, 7, 51, 52, 90])
def test_windows_are_cut_from_the_normalised_network(tiny_zoo, extractor, window_size):
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    whole = extractor.normalize(split.stacked_tokens(), layout)
    aligned = extractor.normalize(aligned_tokens(split), layout)
    windows = sampler(tiny_zoo, extractor, window_size=window_size, noise=0.0, views=("original", "aligned"))
    width, starts = min(window_size, 52), set()
    for step in range(6):
        batch = windows.batch(step, with_indices=True)
        assert batch["tokens"].shape == (8, width, 73)
        for i, index in enumerate(batch["indices"].tolist()):
            start = int(batch["positions"][i, 0, 0])
            part = slice(start, start + width)
            assert torch.equal(batch["positions"][i], layout.positions[part])
            assert torch.equal(batch["weight_mask"][i], layout.weight_mask[part])
            assert torch.equal(batch["tokens"][i], whole[index, part])
            assert torch.equal(batch["second_tokens"][i], aligned[index, part])
            starts.add(start)
        assert batch["attention_mask"].all()
    assert starts == {0} if window_size >= 52 else len(starts) > 1


def test_every_place_is_as_likely(tiny_zoo, extractor):
    windows = sampler(tiny_zoo, extractor, window_size=50, batch_size=64, **PLAIN)
    starts = torch.cat([windows.batch(step)["positions"][:, 0, 0] for step in range(10)])
    assert torch.bincount(starts).tolist() == pytest.approx([640 / 3] * 3, rel=0.2)


def test_noise_multiplies_real_weights_only(tiny_zoo, extractor):
    batch = sampler(tiny_zoo, extractor, noise=0.2).batch(0)
    for prefix in ("", "second_"):
        noisy, clean = batch[f"{prefix}tokens"], batch[f"{prefix}target_tokens"]
        real = batch["weight_mask"] & (clean.abs() > 1e-3)
        factor = noisy[real] / clean[real]
        assert factor.mean() == pytest.approx(1, abs=0.01)
        assert factor.std() == pytest.approx(0.2, abs=0.01)
        assert (noisy[~batch["weight_mask"]] == 0).all()
    assert not torch.equal(batch["tokens"], batch["second_tokens"])


def test_noise_is_the_augmentation_of_the_core(tiny_zoo, extractor):
    """Drawn after the places and permutations, from the generator of the step."""
    batch = sampler(tiny_zoo, extractor, noise=0.1, views=("original",)).batch(0)
    seed = int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    torch.rand(8, generator=generator, dtype=torch.float64)
    torch.randint(200, (1, 8), generator=generator)
    expected = multiplicative_noise(batch["target_tokens"], batch["weight_mask"], std=0.1, generator=generator)
    assert torch.equal(batch["tokens"], expected)


def test_erasing_blanks_whole_tokens(tiny_zoo, extractor):
    batch = sampler(tiny_zoo, extractor, erase=0.3, batch_size=32, noise=0.0).batch(0)
    blank = (batch["tokens"] == 0).all(dim=2)
    assert blank.float().mean() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(batch["tokens"][~blank], batch["target_tokens"][~blank])
    assert not (batch["target_tokens"] == 0).all(dim=2).any()


def test_permuted_views_are_the_same_functions(tiny_zoo, extractor, digits):
    split = tiny_zoo.splits["train"]
    batch = sampler(tiny_zoo, extractor, views=("permuted", "aligned"), noise=0.0).batch(0, with_indices=True)
    expected = split.select(batch["indices"].numpy()).networks().logits(digits.test_images[:10])
    for prefix in ("", "second_"):
        for i, tokens in enumerate(batch[f"{prefix}tokens"]):
            model = split.model(int(batch["indices"][i]))
            model.load_state_dict(extractor.decode(tokens, split.layout(0)))
            torch.testing.assert_close(model(digits.test_images[:10]).logits, expected[i], rtol=1e-3, atol=1e-3)
    assert not torch.equal(batch["tokens"], batch["second_tokens"])


def test_permutations_come_from_a_pool(tiny_zoo, extractor):
    one = sampler(tiny_zoo, extractor, views=("permuted",), num_permutations=1, noise=0.0)
    many = sampler(tiny_zoo, extractor, views=("permuted",), num_permutations=1000, noise=0.0)
    found = {}
    for windows in (one, many):
        seen = {}
        for step in range(0, 12, 4):  # one batch of each of three epochs
            batch = windows.batch(step, with_indices=True)
            for index, tokens in zip(batch["indices"].tolist(), batch["tokens"], strict=True):
                seen.setdefault(index, set()).add(tokens.numpy().tobytes())
        found[windows] = max(map(len, seen.values()))
    assert found[one] == 1
    assert found[many] > 1


def test_the_second_view_may_show_another_checkpoint_of_the_run(tiny_zoo, extractor):
    split = tiny_zoo.splits["train"]
    aligned = extractor.normalize(aligned_tokens(split), split.layout(0))
    options = {"window_size": 20, "views": ("aligned", "aligned")}
    plain = sampler(tiny_zoo, extractor, **options)
    windows = sampler(tiny_zoo, extractor, **options, second_network="same_run")
    runs, seen = np.array(split.run_ids), {}
    for step in range(60):
        batch, same = windows.batch(step, with_indices=True), plain.batch(step)
        for name in ("tokens", "target_tokens", "positions", "weight_mask", "attention_mask"):
            assert torch.equal(batch[name], same[name])  # nothing else changes
        for i, index in enumerate(batch["indices"].tolist()):
            part = slice(start := int(batch["positions"][i, 0, 0]), start + 20)
            siblings = set(np.flatnonzero(runs == runs[index])) - {index}
            shown = {j for j in siblings if torch.equal(batch["second_target_tokens"][i], aligned[j, part])}
            assert shown
            seen.setdefault(index, set()).update(shown)
            assert not torch.equal(batch["second_target_tokens"][i], batch["target_tokens"][i])
    assert max(len(found) for found in seen.values()) == len(split) // len(set(runs)) - 1
    again = windows.batch(3)
    assert all(torch.equal(again[name], tensor) for name, tensor in windows.batch(3).items())


def test_siblings_are_all_as_likely_and_a_lonely_network_stays():
    siblings = Siblings(["b", "a", "b", "c", "b", "a"])
    shares = np.linspace(0, 1, 1000, endpoint=False)
    for member, others in {0: [2, 4], 2: [0, 4], 4: [0, 2], 1: [5], 5: [1], 3: [3]}.items():
        drawn = siblings.draw(np.full(1000, member), shares)
        assert dict(zip(*np.unique(drawn, return_counts=True), strict=True)) == dict.fromkeys(
            others, 1000 // len(others)
        )
    assert siblings.exist
    assert not Siblings(["a", "b"]).exist


def test_another_checkpoint_of_the_run_needs_one(tiny_zoo, extractor):
    split = tiny_zoo.splits["train"]
    last = split.select(split.column("epoch") == split.column("epoch").max())
    options = {"window_size": 52, "batch_size": 4}
    with pytest.raises(
        ValueError, match="requires runs with checkpoints of several epochs, got one network of every run"
    ):
        new_sampler([last], extractor, **options, second_network="same_run")
    with pytest.raises(ValueError, match=r"needs two views, got views=\['original'\]"):
        new_sampler([split], extractor, **options, **PLAIN, second_network="same_run")
    with pytest.raises(ValueError, match="expected second_network to be one of 'same', 'same_run', got 'other'"):
        new_sampler([split], extractor, **options, second_network="other")
    mixed = new_sampler(
        [last, split],
        extractor,
        **options,
        noise=0.0,
        views=("aligned",) * 2,
        second_network="same_run",
    )
    for batch in (mixed.batch(step, with_indices=True) for step in range(9)):
        for i, index in enumerate(batch["indices"].tolist()):
            assert torch.equal(batch["tokens"][i], batch["second_tokens"][i]) == (index < len(last))


@pytest.mark.parametrize("batch_size", [1, 5, 32, 50])
def test_one_epoch_takes_every_network_once(tiny_zoo, extractor, batch_size):
    windows = sampler(tiny_zoo, extractor, batch_size=batch_size, window_size=1, **PLAIN)
    steps = -(-3 * 32 // batch_size)
    seen = torch.cat([windows.batch(step, with_indices=True)["indices"] for step in range(steps)])
    orders = [seen[32 * epoch : 32 * (epoch + 1)] for epoch in range(3)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(32))
    assert not torch.equal(orders[0], orders[1])


def test_a_batch_is_a_pure_function_of_seed_and_step(tiny_zoo, extractor):
    first, second = sampler(tiny_zoo, extractor, erase=0.1), sampler(tiny_zoo, extractor, erase=0.1)
    for _ in range(3):
        first.batch(9)
    torch.manual_seed(3)
    expected, found = first.batch(4), second.batch(4)
    assert len(expected) == 7
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name])
    assert not torch.equal(expected["tokens"], first.batch(5)["tokens"])
    other = sampler(tiny_zoo, extractor, erase=0.1, seed=1).batch(4)
    assert not torch.equal(expected["tokens"], other["tokens"])


def test_drawing_leaves_the_global_generator_and_the_zoo_alone(tiny_zoo, extractor):
    before = tiny_zoo.splits["train"].stacked_tokens()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batch = sampler(tiny_zoo, extractor).batch(0)
    assert torch.equal(torch.rand(3), expected)
    for tensor in batch.values():
        tensor.zero_()
    assert torch.equal(tiny_zoo.splits["train"].stacked_tokens(), before)


def test_iterating_counts_the_steps(tiny_zoo, extractor):
    windows = sampler(tiny_zoo, extractor)
    for step, batch in enumerate(islice(windows, 3)):
        assert torch.equal(batch["tokens"], windows.batch(step)["tokens"])
    assert step == 2


def test_architectures_of_different_length_share_batches(tiny_zoo, mlp_zoo):
    splits = [tiny_zoo.splits["train"], mlp_zoo.splits["train"]]
    extractor = fit(*splits)
    windows = new_sampler(splits, extractor, window_size=60, batch_size=10, noise=0.0, views=("original", "aligned"))
    whole = [extractor.normalize(split.stacked_tokens(), split.layout(0)) for split in splits]
    count = sum(map(len, splits))
    lengths = set()
    for step in range(-(-count // 10)):
        batch = windows.batch(step, with_indices=True)
        assert batch["tokens"].shape == (10, 52, 73)
        for i, index in enumerate(batch["indices"].tolist()):
            tokens = whole[0][index] if index < 32 else whole[1][index - 32]
            length = int(batch["attention_mask"][i].sum())
            assert length == len(tokens)
            assert torch.equal(batch["tokens"][i, :length], tokens)
            for name in ("tokens", "second_tokens", "positions", "weight_mask", "attention_mask"):
                assert not batch[name][i, length:].any()
            lengths.add(length)
    assert lengths == {12, 52}


def test_a_split_of_two_architectures_is_taken_apart(tiny_zoo, mlp_zoo, extractor):
    parts = [tiny_zoo.splits["train"], mlp_zoo.splits["train"]]
    facts = tiny_zoo.facts.__class__(
        name="mixed",
        layouts={**tiny_zoo.facts.layouts, **mlp_zoo.facts.layouts},
        architectures={**tiny_zoo.facts.architectures, **mlp_zoo.facts.architectures},
    )
    rows = datasets.concatenate_datasets([part.table.dataset for part in parts])
    mixed = ZooSplit(rows, facts)
    settings = {"window_size": 52, "batch_size": 8, "views": ("original", "permuted")}
    windows = new_sampler([mixed], fit(*parts), **settings)
    assert len(mixed) == sum(map(len, parts))
    assert {source.layout.num_tokens for source in windows.networks.sources} == {12, 52}
    apart = new_sampler(parts, fit(*parts), **settings)
    for name, tensor in windows.batch(2).items():
        assert torch.equal(tensor, apart.batch(2)[name])
    extractor = fit(*parts)
    shuffled = mixed.select(np.random.default_rng(0).permutation(len(mixed)))
    windows = new_sampler([mixed, shuffled], extractor, **{**settings, "noise": 0.0})
    for step in range(2 * len(mixed) // 8):
        batch = windows.batch(step, with_indices=True)
        for i, index in enumerate(batch["indices"].tolist()):
            split, position = (mixed, index) if index < len(mixed) else (shuffled, index - len(mixed))
            tokens = extractor.normalize(split.select([position]).stacked_tokens(), split.layout(position))[0]
            assert torch.equal(batch["tokens"][i, : len(tokens)], tokens)


def test_the_model_takes_a_batch_as_it_is(tiny_zoo, mlp_zoo):
    splits = [tiny_zoo.splits["train"], mlp_zoo.splits["train"]]
    windows = new_sampler(splits, fit(*splits), window_size=52, batch_size=6)
    config = SANEConfig(
        token_dim=73, hidden_size=16, latent_dim=8, num_hidden_layers=1, num_attention_heads=2, window_size=52
    )
    output = SANEModel(config)(**windows.batch(0))
    assert output.loss.isfinite()
    assert output.contrastive_loss.isfinite()


@pytest.mark.parametrize("normalization", ["none", "robust"])
def test_other_normalisations(tiny_zoo, normalization):
    split = tiny_zoo.splits["train"]
    extractor = SANEFeatureExtractor(token_dim=73, normalization=normalization)
    extractor.fit([(split.layout(0), split.stacked_tokens())])
    batch = sampler(tiny_zoo, extractor, **PLAIN).batch(0, with_indices=True)
    expected = extractor.normalize(split.select(batch["indices"].numpy()).stacked_tokens(), split.layout(0))
    assert torch.equal(batch["tokens"], expected)


def test_a_stream_gives_the_same_windows(tiny_zoo, tiny_zoo_folder, extractor, tmp_path):
    rows = datasets.load_dataset(
        str(tiny_zoo_folder), split="train", streaming=True, cache_dir=str(tmp_path)
    ).with_format("numpy")
    facts, alignment = read_facts(tiny_zoo_folder)["default"], Alignment.load(tiny_zoo_folder / "data")
    stream, views = stream_of(rows, facts, alignment), ("aligned", "permuted")
    windows = new_sampler([stream], extractor, window_size=60, batch_size=5, views=views)
    split = tiny_zoo.splits["train"]
    expected = extractor.normalize(aligned_tokens(split), split.layout(0))
    batches = list(islice(windows, 7))
    joined = torch.cat([expected, expected[:3]])  # 32 rows, then the next epoch
    assert torch.equal(torch.cat([batch["target_tokens"] for batch in batches]), joined)
    assert batches[0].keys() == sampler(tiny_zoo, extractor).batch(0).keys()
    for first, again in zip(batches, windows, strict=False):
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_stream_and_a_table_draw_the_same_places_and_permutations(tiny_zoo, extractor):
    table = sampler(tiny_zoo, extractor, window_size=20)
    split, rows = tiny_zoo.splits["train"], tiny_zoo.splits["train"].table.dataset.with_format("numpy")
    for step in range(3):
        expected = table.batch(step, with_indices=True)
        stream = stream_of([rows[int(split.rows[i])] for i in expected.pop("indices")], split.facts, split.alignment)
        windows = new_sampler([stream], extractor, window_size=20, batch_size=8)
        found = windows.batch(step)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_stream_of_plain_rows(tiny_zoo, extractor):
    rows = list(tiny_zoo.splits["test"].table.dataset)  # tokens as lists
    settings = {"window_size": 20, "batch_size": 4, "noise": 0.0, "views": ("original",)}
    batches = list(islice(new_sampler([stream_of(rows, tiny_zoo.facts)], extractor, **settings), 2))
    whole = extractor.normalize(tiny_zoo.splits["test"].stacked_tokens(), tiny_zoo.splits["test"].layout(0))
    for number, batch in enumerate(batches):
        for i in range(4):
            start = int(batch["positions"][i, 0, 0])
            assert torch.equal(batch["tokens"][i], whole[4 * number + i, start : start + 20])


def test_streams_of_something_else_are_refused(tiny_zoo, extractor):
    settings = {"window_size": 20, "batch_size": 1, "views": ("original",)}
    row = tiny_zoo.splits["test"].table.dataset[0]
    with pytest.raises(KeyError, match="the stream is not a zoo: columns .*tokens.* are missing, it has .*'x'"):
        new_sampler([stream_of([{"x": 1}], tiny_zoo.facts)], extractor, **settings).batch(0)
    other = stream_of([{**row, "layout": "other"}], tiny_zoo.facts)
    with pytest.raises(KeyError, match="a row has layout 'other' and architecture .*; read both from one zoo"):
        new_sampler([other], extractor, **settings).batch(0)
    with pytest.raises(ValueError, match="'same_run' requires all checkpoints of a run, which a stream does not"):
        two = {**settings, "views": ("original", "original"), "second_network": "same_run"}
        new_sampler([other], extractor, **two)
    with pytest.raises(ValueError, match="requires an aligned zoo, got one that is not: align it .hf-sane zoo align"):
        new_sampler([other], extractor, window_size=20, batch_size=1)
    with pytest.raises(ValueError, match="expected zoos on disk or streams, got 1 and 1; open all in the same way"):
        new_sampler([other, tiny_zoo.splits["test"]], extractor, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_size": 0}, "window_size must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_permutations": 0}, "num_permutations must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        (
            {"views": ("canonical",)},
            r"expected views to be one or two of 'original', 'aligned', 'permuted', got \['canonical'\]",
        ),
        ({"views": ()}, r"expected views to be one or two of .*, got \[\]"),
        ({"noise": -0.1}, "noise must not be negative, got -0.1"),
        ({"noise": float("nan")}, "noise must not be negative, got nan"),
        ({"noise": float("inf")}, "noise must be finite, got inf"),
        ({"erase": 1.0}, r"erase must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_settings_are_refused(tiny_zoo, extractor, settings, message):
    with pytest.raises(ValueError, match=message):
        sampler(tiny_zoo, extractor, **settings)


def test_what_does_not_fit_together_is_refused(tiny_zoo, mlp_zoo, extractor):
    split = tiny_zoo.splits["train"]
    settings = {"window_size": 52, "batch_size": 2}
    with pytest.raises(ValueError, match="expected at least one network to draw windows from, got none"):
        new_sampler([split.select([])], extractor, **settings)
    with pytest.raises(ValueError, match="requires an aligned zoo, got one that is not: align it .hf-sane zoo align"):
        new_sampler([ZooSplit(split.table, split.facts)], extractor, **settings)
    with pytest.raises(
        ValueError, match=r"the extractor makes .* = \(289, 'rowwise', 'tokens'\), the zoo was built with"
    ):
        new_sampler([split], SANEFeatureExtractor(normalization="none"), **settings)
    with pytest.raises(ValueError, match="needs statistics: call fit"):
        new_sampler([split], SANEFeatureExtractor(token_dim=73), **settings)
    with pytest.raises(KeyError, match="the extractor was fitted on another layout"):
        new_sampler([mlp_zoo.splits["train"]], extractor, **settings)
    with pytest.raises(ValueError, match="steps count from 0, got -1"):
        sampler(tiny_zoo, extractor).batch(-1)
