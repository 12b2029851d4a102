"""The whole road for classifiers of texts: import, probe, pre-train, sample by a metric of `evaluate`, fine-tune."""

import copy
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

import hf_sane
from hf_sane.merging._swa import train_stacked_swa
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._metrics import Metric, module_logits
from hf_sane.networks._modules import fresh_networks
from hf_sane.networks._stacked import StackedNetworks, cross_entropy
from hf_sane.networks._tasks import Classification
from hf_sane.networks._texts import TextData, load_texts
from hf_sane.networks._training import train_stacked
from hf_sane.records._errors import InvalidFileError
from hf_sane.sampling._export import Provenance
from hf_sane.zoo._dataset import Zoo

GOOD, BAD, OTHER = ("fine", "great", "lovely"), ("awful", "dull", "poor"), ("a", "film", "the", "very")
WORDS = ["[PAD]", "[UNK]", *GOOD, *BAD, *OTHER]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4}
COUNT = 10
# A metric of `evaluate` that works without a network: the share of the worst class that is recognised.
SCRIPT = """
import datasets
import evaluate
import numpy as np


class WorstRecall(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int64")
        return evaluate.MetricInfo("", citation="", features=datasets.Features(predictions=number, references=number))

    def _compute(self, predictions, references):
        right = np.array(predictions) == np.array(references)
        return {"worst_recall": min(right[np.array(references) == name].mean() for name in set(references))}
"""


def worst_recall(predicted, labels):
    return min((predicted == labels)[labels == name].float().mean().item() for name in labels.unique())


def sentences(count: int, seed: int) -> datasets.Dataset:
    random = np.random.default_rng(seed)
    labels = [str(random.choice(["bad", "good"])) for _ in range(count)]
    words = [random.choice(GOOD if label == "good" else BAD) for label in labels]
    texts = [" ".join([*random.choice(OTHER, random.integers(1, 5)), word]) for word in words]
    return datasets.Dataset.from_dict({"text": texts, "label": labels})


@pytest.fixture(scope="module")
def reviews() -> datasets.DatasetDict:
    sizes = {"train": 40, "validation": 20, "test": 40}
    return datasets.DatasetDict({name: sentences(size, size + len(name)) for name, size in sizes.items()})


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16)


@pytest.fixture(scope="module")
def data(reviews, tokenizer) -> TextData:
    return load_texts(reviews, tokenizer)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    """Checkpoints of tiny BERTs, trained for a moment, a table of their accuracies, and a metric."""
    root = tmp_path_factory.mktemp("berts")
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, hidden_dropout_prob=0, **SIZES)
    lines = ["run,test_acc,kind,test_loss"]
    cross_entropy_of = Classification(data, Metric("cross_entropy", higher_is_better=False))
    for run in range(COUNT):
        torch.manual_seed(run)
        network = BertForSequenceClassification(config)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        inputs, labels = data.split("train")
        for _ in range(2 + run):
            optimizer.zero_grad()
            network(input_ids=inputs[:, 0], attention_mask=inputs[:, 1], labels=labels).loss.backward()
            optimizer.step()
        accuracy, loss = (task.measure_one(network, "test") for task in (Classification(data), cross_entropy_of))
        lines.append(f"run{run},{accuracy},{'ab'[run % 2]},{loss}")
        network.save_pretrained(root / "nets" / f"run{run}")
        data.tokenizer.save_pretrained(root / "nets" / f"run{run}")
    (root / "runs.csv").write_text("\n".join(lines))
    (root / "worst_recall").mkdir()
    (root / "worst_recall/worst_recall.py").write_text(SCRIPT)
    return root


@pytest.fixture(scope="module")
def zoo(folder) -> Zoo:
    made = hf_sane.import_zoo(
        folder / "nets",
        properties=folder / "runs.csv",
        token_dim=16,
        split_shares=[0.5, 0.2, 0.3],
        output=folder / "zoo",
    )
    return getattr(made, "zoo", made)


@pytest.fixture(scope="module")
def sane(folder, zoo):
    quiet = {"log_with": "none", "progress_bar": False, "views": ["original", "original"]}
    hf_sane.pretrain(zoo, output=folder / "run", max_steps=2, batch_size=3, model=SMALL, **quiet)
    return hf_sane.SANE.from_pretrained(folder / "run/model")


def test_imported_networks_run_without_their_code(zoo, folder, data):
    split = zoo.splits["train"]
    network = split.model(0)
    assert type(network) is BertForSequenceClassification
    name = Path(split.column("repo_id")[0]).name
    original = BertForSequenceClassification.from_pretrained(folder / "nets" / split.run_ids[0].split("/")[0])
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in original.state_dict().items()), name
    accuracies = Classification(data).measure(split.networks(), "test")[0]
    np.testing.assert_allclose(accuracies, split.column("test_accuracy"), atol=1e-6)


def test_they_are_mapped_and_averaged_along_their_training(zoo, sane, data):
    """Symmetries are traced from the configuration that came with the networks; nothing is registered."""
    found = hf_sane.map_regions(zoo, sane=sane, label=["kind"], plots=False)
    assert list(found.maps) == ["weights", "latents"]
    as_they_are = hf_sane.map_regions(zoo, label=["kind"], align=False, plots=False)
    aligned, before = (maps.maps["weights"].distances("euclidean")[0] for maps in (found, as_they_are))
    assert (aligned[1:] < before[1:]).all()
    networks = zoo.splits["train"].networks().select(slice(0, 2))
    settings = HyperParameters.repeat([5, 6], learning_rate=5e-3)
    averaged = train_stacked_swa(networks, data, settings, cycles=2).averaged.tensors
    ends = train_stacked(networks.config, networks.tensors, data, settings, epochs=2, keep_epochs=[1, 2])
    one, two = (snapshot.tensors for snapshot in ends)
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2 if tensor.is_floating_point() else two[name])


def test_they_are_aligned_embedded_and_probed(zoo, sane, folder):
    aligned = hf_sane.align_zoo(zoo)
    assert any(
        generator.size > 1 for spec in aligned.alignment.specs.values() for generator in spec.generators.values()
    )
    assert sane.embed(folder / "nets/run0").shape[-1] == SMALL["latent_dim"]
    assert "test_loss" in hf_sane.probe(zoo, sane, properties=["test_loss"], poolings=["mean"]).table


def test_they_are_sampled_by_a_metric_of_evaluate_saved_and_fine_tuned(zoo, sane, folder, reviews, data, tmp_path):
    options = {"num_samples": 2, "num_candidates": 3, "bandwidth": [0.1], "metric": str(folder / "worst_recall")}
    networks = hf_sane.sample(zoo, sane, texts=reviews, tokenizer=str(folder / "nets/run0"), **options)
    networks.save_pretrained(tmp_path / "sampled")
    for index, origin in enumerate(networks.provenance):
        place = tmp_path / "sampled" / f"network_{index}"
        loaded = AutoModelForSequenceClassification.from_pretrained(place)
        for split in ("validation", "test"):
            inputs, labels = data.split(split)
            predicted = loaded(input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).logits.argmax(dim=1)
            assert origin.scores[f"{split}_worst_recall"] == pytest.approx(worst_recall(predicted, labels))
        assert Provenance.load(place) == origin
        assert loaded.config.id2label == {0: "bad", 1: "good"}
    card = (tmp_path / "sampled/network_0/README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card
    found = pipeline("text-classification", str(tmp_path / "sampled/network_0"))("a great film")[0]
    assert found["label"] in ("bad", "good")
    tuned = hf_sane.finetune(tmp_path / "sampled", texts=reviews, epochs=1, learning_rate=0.01)
    before = [Classification(data).measure_one(network, "test") for network in networks]
    assert tuned.curves["networks"][0] == pytest.approx(before)
    after = [Classification(data).measure_one(network, "test") for network in tuned]
    assert tuned.curves["networks"][1] == pytest.approx(after)
    tuned.save_pretrained(tmp_path / "tuned")
    assert (tmp_path / "tuned/network_0/tokenizer.json").is_file()


def test_anchors_name_the_tokenizer_and_soups_are_selected(folder, sane, reviews, data):
    places = [folder / "nets" / f"run{run}" for run in range(3)]
    options = {"texts": reviews, "num_samples": 1, "num_candidates": 2, "bandwidth": 0.1}
    networks = hf_sane.sample(places, sane, **options)
    inputs, labels = data.split("test")
    predicted = networks[0](input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).logits.argmax(dim=1)
    assert networks.provenance[0].test_accuracy == pytest.approx((predicted == labels).float().mean().item())
    soup = hf_sane.soup(places, method="greedy", texts=reviews)
    alone = [
        Classification(data).measure_one(BertForSequenceClassification.from_pretrained(p), "validation")
        for p in places
    ]
    assert list(soup.soup.ingredient_scores.values()) == pytest.approx(alone)
    assert soup.soup.score >= max(alone)
    assert soup.record.results["test_accuracy"] == pytest.approx(Classification(data).measure_one(soup.model, "test"))


def test_texts_are_tokens_and_the_mask_of_those_that_count(data, tokenizer, reviews):
    inputs, labels = data.split("validation")
    assert (data.num_classes, data.class_names) == (2, ("bad", "good"))
    assert labels.tolist() == [("bad", "good").index(label) for label in reviews["validation"]["label"]]
    for (ids, mask), text in zip(inputs, reviews["validation"]["text"], strict=True):
        assert ids[mask.bool()].tolist() == [WORDS.index(word) for word in text.split()]
        assert not ids[~mask.bool()].any()
    assert load_texts(reviews, tokenizer, max_tokens=2).split("train")[0].shape[2] == 2


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder", "saved", "one split"])
def test_texts_come_as_people_have_them(kind, reviews, tokenizer, tmp_path):
    train = reviews["train"]
    if kind == "saved":
        reviews.save_to_disk(tmp_path / "reviews")
    elif kind == "folder":
        (tmp_path / "reviews").mkdir()
        for split in ("train", "test"):
            reviews[split].to_csv(tmp_path / "reviews" / f"{split}.csv")
    elif kind != "one split":
        {"csv": train.to_csv, "jsonl": train.to_json, "parquet": train.to_parquet}[kind](tmp_path / f"reviews.{kind}")
    place = {"saved": "reviews", "folder": "reviews"}.get(kind, f"reviews.{kind}")
    data = load_texts(train if kind == "one split" else tmp_path / place, tokenizer)
    sizes = {split: len(data.split(split)[1]) for split in ("train", "validation", "test")}
    whole = {
        "saved": {"train": 40, "validation": 20, "test": 40},
        "folder": {"train": 34, "validation": 6, "test": 40},
    }
    assert sizes == whole.get(kind, {"train": 28, "validation": 6, "test": 6})
    assert data.class_names == ("bad", "good")


@pytest.mark.parametrize("separator", ",;\t|")
@pytest.mark.parametrize("is_folder", [False, True])
def test_tables_of_spreadsheets_are_read_by_their_header(separator, is_folder, reviews, tokenizer, tmp_path):
    train = reviews["train"]
    rows = [("id", "Review", "Sentiment"), *zip(range(len(train)), train["text"], train["label"], strict=True)]
    text = "".join(separator.join((str(number), f'"{text}"', label)) + "\r\n" for number, text, label in rows)
    place = tmp_path / "reviews" / "train.csv"
    place.parent.mkdir()
    place.write_text(text, encoding="utf-8-sig", newline="")
    data = load_texts(place.parent if is_folder else place, tokenizer)
    assert data.class_names == ("bad", "good")
    plain = load_texts(train, tokenizer)
    for split in ("train", "validation", "test"):
        assert all(torch.equal(*pair) for pair in zip(data.split(split), plain.split(split), strict=True))


def test_pairs_of_texts_are_one_input(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    columns = {"premise": ["a great film", "a"] * 20, "hypothesis": ["fine", "dull film"] * 20, "label": [0, 1] * 20}
    pairs = datasets.Dataset.from_dict(columns)
    data = load_texts(pairs, tokenizer)
    assert data.describe()["pairs"] == ["premise", "hypothesis"]  # found by their names
    inputs, labels = data.split("train")
    ids, mask, types = inputs[labels == 1][0]
    assert ids.tolist() == [WORDS.index(word) for word in ("a", "dull", "film", "[PAD]")]
    assert mask.tolist() == [1, 1, 1, 0]
    assert types.tolist() == [0, 1, 1, 0]
    torch.manual_seed(0)
    network = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **SIZES))
    network.eval()
    expected = network(input_ids=inputs[:, 0], attention_mask=inputs[:, 1], token_type_ids=inputs[:, 2]).logits
    torch.testing.assert_close(module_logits(network, inputs), expected)
    named = load_texts(pairs, tokenizer, text_column="hypothesis, premise")
    assert named.split("train")[0][named.split("train")[1] == 1][0, 0].tolist()[:2] == list(
        map(WORDS.index, ("dull", "film"))
    )
    assert load_texts(pairs, tokenizer, text_column="premise").split("train")[0].shape[1] == 2
    with pytest.raises(ValueError, match="expected a column of texts, or two columns of text pairs, got a, b, c"):
        load_texts(pairs, tokenizer, text_column="a,b,c")


def test_the_end_of_text_fills_up_where_no_token_is_for_padding(tokenizer, caplog):
    """A network that reads the last token must know which ones are none, also where it is saved."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token, tokenizer.eos_token = None, "very"
    texts = ["fine", "a great film", "dull", "the poor film"] * 10
    data = load_texts(datasets.Dataset.from_dict({"text": texts, "label": [1, 1, 0, 0] * 10}), tokenizer)
    assert "has no pad token: texts are padded with very" in caplog.text
    assert (data.tokenizer.pad_token, tokenizer.pad_token) == ("very", None)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    network = GPT2ForSequenceClassification(config).eval()
    inputs, labels = data.split("test")
    alone = [network(input_ids=ids[mask == 1][None]).logits.argmax().item() for ids, mask in inputs]
    measured = Classification(data).measure_one(network, "test")
    assert measured == pytest.approx((torch.tensor(alone) == labels).float().mean().item())
    assert network.config.pad_token_id == WORDS.index("very")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="without a pad token and an end-of-text token; set tokenizer.pad_token"):
        load_texts(datasets.Dataset.from_dict({"text": texts, "label": [1, 1, 0, 0] * 10}), tokenizer)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"text": ["a", "b"] * 9, "other": [0, 1] * 9}, KeyError, r"expected a text column .*--label-column"),
        (
            {"text": ["a", None] * 9, "label": [0, 1] * 9},
            ValueError,
            "at least two classes, got only '0'; add another",
        ),
        ({"text": ["a", "b"] * 9, "label": ["x"] * 18}, ValueError, "at least two classes, got only 'x'; add another"),
        (
            {"text": [" ", ""] * 9, "label": [0, 1] * 9},
            ValueError,
            "expected examples with text and label, got 18 that",
        ),
        ({"text": ["a"] * 9, "label": [0.5] * 9}, ValueError, "one integer class index per example, got float"),
        ({"text": ["a"], "label": [0]}, ValueError, "1 examples are too few to split off a test split"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(columns, error, message, tokenizer):
    with pytest.raises(error, match=message):
        load_texts(datasets.Dataset.from_dict(columns), tokenizer)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"\n \r\n", "an empty file"),
        (b"text,label\r\n", "only a header"),
        (bytes(range(256)), "binary data or UTF-16"),
        ("text,label\na,b\n".encode("utf-16"), "binary data or UTF-16"),
        ("text,label\na,b\ngr\u00f6\u00dfer,c".encode("latin-1"), "another encoding than UTF-8 in row 3"),
    ],
    ids=["empty", "blank", "header", "binary", "UTF-16", "latin-1"],
)
@pytest.mark.parametrize("is_folder", [False, True])
def test_tables_that_cannot_be_read_say_why(content, got, is_folder, tokenizer, tmp_path):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(
        InvalidFileError, match=f"train.csv: expected a dataset of texts and labels, got {got}; save it"
    ):
        load_texts(tmp_path if is_folder else tmp_path / "train.csv", tokenizer)


def test_the_cause_of_a_fault_in_a_table_is_named(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n{"text": ')
    with pytest.raises(InvalidFileError) as error:
        load_texts(tmp_path / "a.jsonl", tokenizer)
    assert "occurred while generating" not in str(error.value)
    assert "JSON" in error.value.got


def test_examples_without_a_text_or_label_are_left_out(tokenizer, tmp_path, caplog):
    whole = [("fine", 1), ("dull", 0)] * 20
    rows = [*whole[:7], ("", 1), (" ", 0), ("great", ""), *whole[7:], ("poor", "")]
    for name, kept in (("whole", whole), ("rows", rows)):
        text = "".join(f"{text},{label}\n" for text, label in kept)
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{text}")
    expected = load_texts(tmp_path / "whole.csv", tokenizer)
    found = load_texts(tmp_path / "rows.csv", tokenizer)
    for split in ("train", "validation", "test"):
        assert all(torch.equal(*pair) for pair in zip(found.split(split), expected.split(split), strict=True))
    assert caplog.messages == [
        "train: 2 examples are left out (no text)",
        "train: 2 examples are left out (no label)",
    ]
    named = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"text": ["a", "b"] * 20, "label": ["x", "y"] * 20}),
        test=datasets.Dataset.from_dict({"text": ["a", "b"], "label": [None, ""]}),
    )
    assert len(load_texts(named, tokenizer).split("test")[1]) == 6  # as if there was no such split


def test_classes_keep_their_numbers_in_splits_that_lack_some(tokenizer):
    """A split without the first class numbered the others from 0."""
    train = datasets.Dataset.from_dict({"text": ["x"] * 6, "label": ["a", "b", "c"] * 2})
    test = datasets.Dataset.from_dict({"text": ["x"] * 2, "label": ["c", "b"]})
    data = load_texts(datasets.DatasetDict({"train": train, "test": test}), tokenizer)
    assert data.split("test")[1].tolist() == [2, 1]
    foreign = datasets.DatasetDict({"train": test, "test": train})
    with pytest.raises(ValueError, match="the test split has classes that train lacks: a"):
        load_texts(foreign, tokenizer)


def test_splits_without_labels_are_left_out(tokenizer):
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": names})
    made = {
        split: datasets.Dataset.from_dict({"sentence": ["x"] * 40, "label": labels}, features=features)
        for split, labels in {"train": [0, 1] * 20, "test": [-1] * 40}.items()
    }
    data = load_texts(datasets.DatasetDict(made), tokenizer)
    assert [len(data.split(split)[1]) for split in ("train", "validation", "test")] == [28, 6, 6]


def test_stacks_of_text_networks_train_as_single_ones(data):
    """One after the other, since `torch.vmap` cannot run their masks."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **SIZES)
    networks = [BertForSequenceClassification(config).eval() for _ in range(2)]
    stack = StackedNetworks.from_state_dicts(networks[0], [network.state_dict() for network in networks])
    inputs, labels = (part[:6] for part in data.split("train"))
    leaves = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in stack.tensors.items()
    }
    loss = cross_entropy(
        StackedNetworks(networks[0], leaves).logits(torch.stack([inputs, inputs])), labels[None]
    ).sum()
    loss.backward()
    for index, network in enumerate(networks):
        nn.functional.cross_entropy(
            network(input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).logits, labels
        ).backward()
        torch.testing.assert_close(leaves["classifier.weight"].grad[index], network.classifier.weight.grad)


def test_networks_from_scratch_are_initialised_by_their_own_class():
    network = BertForSequenceClassification(BertConfig(vocab_size=2000, **SIZES)).eval()
    fresh = fresh_networks(network, [0, 1])
    embeddings = fresh.tensors["bert.embeddings.word_embeddings.weight"]
    assert embeddings.std().item() == pytest.approx(0.02, rel=0.05)  # not that of nn.Embedding, 1
    assert not torch.equal(embeddings[0], embeddings[1])
