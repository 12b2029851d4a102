import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from hf_sane.architectures.presets import build_model, cnn_digits, mlp
from hf_sane.merging._averaging import average_checkpoints
from hf_sane.merging._ingredients import align_ingredients, is_averaged, open_ingredients
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.symmetry._matching import weight_similarity
from hf_sane.symmetry._networks import permutation_spec

# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


def is_moved(ingredient):
    return any(not torch.equal(index, torch.arange(len(index))) for index in (ingredient.permutation or {}).values())


def copy_with(folder, target, **changes):
    """A copy of a model folder whose config.json says something else."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_every_kind_of_source_gives_the_same_tensors(fine_tuned, folders, tmp_path):
    state_dict = fine_tuned.state_dict(0)
    torch.save(state_dict, tmp_path / "weights.pt")
    save_file({f"module.{name}": tensor for name, tensor in state_dict.items()}, tmp_path / "wrapped.safetensors")
    model = fine_tuned.model(0)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="2KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    sources = [state_dict, model, folders[0], str(folders[0]), tmp_path / "sharded"]
    sources += [tmp_path / "weights.pt", tmp_path / "wrapped.safetensors"]
    ingredients = open_ingredients(sources)
    assert [i.name for i in ingredients[:2]] == ["ingredient_0", "ingredient_1"]
    assert [i.name for i in ingredients[2:]] == ["run_0_2", "run_0_3", "sharded", "weights.pt", "wrapped.safetensors"]
    for ingredient in ingredients:
        assert ingredient.outlines.keys() == state_dict.keys()
        assert ingredient.permutation is None
        for name, tensor in state_dict.items():
            assert torch.equal(ingredient.tensor(name), tensor)
            assert ingredient.outlines[name].device.type == "meta"


@pytest.mark.parametrize("sources", [[], [{}], "someone/model"])
def test_a_single_checkpoint_is_no_soup(sources):
    with pytest.raises(ValueError, match="a list of at least two checkpoints, got (0|1|the single source)"):
        open_ingredients(sources)


def test_names_must_fit(fine_tuned):
    with pytest.raises(ValueError, match="one name for each of 2 checkpoints, got 1"):
        open_ingredients([fine_tuned.state_dict(0), fine_tuned.state_dict(1)], names=["a"])


def test_other_tensors_are_refused(fine_tuned):
    with pytest.raises(
        ValueError,
        match=r"a and b are of different architectures: 6 tensors are in a only, such as \[.*\] and 0 tensors are in "
        r"b only$",
    ):
        open_ingredients([fine_tuned.state_dict(0), build_model(mlp()).state_dict()], names=["a", "b"])


def test_other_shapes_are_refused(fine_tuned):
    other = build_model(cnn_digits(num_labels=7)).state_dict()
    with pytest.raises(ValueError, match=r"'classifier.weight' is \[10, 20\] in a and \[7, 20\] in b"):
        open_ingredients([fine_tuned.state_dict(0), other], names=["a", "b"])


def test_other_kinds_of_dtype_are_refused(fine_tuned):
    other = fine_tuned.state_dict(1)
    other["classifier.bias"] = other["classifier.bias"].long()
    with pytest.raises(ValueError, match="'classifier.bias' is torch.float32 in a and torch.int64 in b; convert one"):
        open_ingredients([fine_tuned.state_dict(0), other], names=["a", "b"])


def test_quantised_weights_are_refused():
    with pytest.raises(ValueError, match="quantised weights of dtype torch.float8_e4m3fn; dequantise"):
        is_averaged(torch.zeros(2).to(torch.float8_e4m3fn))


@pytest.mark.parametrize("as_models", [True, False])
def test_equal_shapes_with_another_function_are_refused(folders, tmp_path, as_models):
    """Two activations have the same tensors: only the configuration tells them apart."""
    sources = [folders[0], copy_with(folders[1], tmp_path / "other", activation="tanh")]
    if as_models:
        sources = [build_model(cnn_digits()), build_model(cnn_digits(activation="tanh"))]
    with pytest.raises(
        ValueError, match="of different architectures: activation 'gelu' and 'tanh'; average within one"
    ):
        open_ingredients(sources)


def test_other_dropout_and_initialisation_are_fine(folders, tmp_path):
    other = copy_with(folders[1], tmp_path / "other", dropout=0.3, initialization="normal")
    assert len(open_ingredients([folders[0], other])) == 2


def test_other_labels_are_refused(folders, tmp_path):
    names = [str(i) for i in range(10)]
    sources = [
        copy_with(folders[i], tmp_path / f"{i}", id2label=dict(enumerate(order)))
        for i, order in enumerate([names, names[::-1]])
    ]
    with pytest.raises(ValueError, match=r"0 and 1 have different labels \(id2label"):
        open_ingredients(sources)


def test_other_tokenizers_are_refused(folders, tmp_path):
    sources = [copy_with(folders[i], tmp_path / f"{i}") for i in range(3)]
    for i, source in enumerate(sources):
        words = ["the", "cat"] if i < 2 else ["cat", "the"]
        content = {"truncation": {"max_length": i}, "model": {"vocab": dict(zip(words, range(2), strict=True))}}
        (source / "tokenizer.json").write_text(json.dumps(content))
    assert len(open_ingredients(sources[:2])) == 2  # truncation is no vocabulary
    with pytest.raises(ValueError, match=r"0 and 2 have different tokenizers \(tokenizer.json differs\)"):
        open_ingredients(sources)
    for i, source in enumerate(sources):
        (source / "tokenizer.json").unlink()
        (source / "vocab.txt").write_text("the\ncat" if i < 2 else "cat\nthe")
    with pytest.raises(ValueError, match=r"0 and 2 have different tokenizers \(vocab.txt differs\)"):
        open_ingredients(sources)


def test_alignment_undoes_a_permutation_and_leaves_functions_alone(independent, digits, seeded):
    state_dict = independent.state_dict(0)
    spec = permutation_spec(independent.config)
    shuffled = spec.apply(state_dict, spec.random(generator=seeded))
    plain = open_ingredients([state_dict, shuffled, independent.state_dict(1)])
    aligned = align_ingredients(plain, spec)
    assert [is_moved(ingredient) for ingredient in aligned] == [False, True, True]
    for name, tensor in state_dict.items():
        assert torch.equal(aligned[1].tensor(name), tensor)
    back = {name: aligned[2].tensor(name) for name in state_dict}
    networks = StackedNetworks.from_state_dicts(independent.config, [independent.state_dict(1), back])
    before, after = networks.logits(digits.test_images)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    similarity = [weight_similarity(spec, state_dict, i.tensors) for i in plain[2:]]
    assert weight_similarity(spec, state_dict, back) > similarity[0]


def test_another_reference(independent, seeded):
    state_dict = independent.state_dict(0)
    spec = permutation_spec(independent.config)
    shuffled = spec.apply(state_dict, spec.random(generator=seeded))
    aligned = align_ingredients(open_ingredients([state_dict, shuffled]), spec, reference=1)
    assert [is_moved(ingredient) for ingredient in aligned] == [True, False]
    found = average_checkpoints(aligned)
    assert all(torch.equal(found[name], tensor) for name, tensor in shuffled.items())
    with pytest.raises(IndexError, match="a reference from 0 to 1, got 2"):
        align_ingredients(aligned, spec, reference=2)


def test_networks_that_share_an_initialisation_stay_as_they_are(fine_tuned):
    ingredients = open_ingredients([fine_tuned.state_dict(index) for index in range(5)])
    aligned = align_ingredients(ingredients, permutation_spec(fine_tuned.config))
    assert not any(map(is_moved, aligned))


@pytest.mark.parametrize("fault", ["nan", "foreign spec"])
def test_alignment_says_which_ingredient_it_cannot_align(fine_tuned, fault):
    states = [fine_tuned.state_dict(0), fine_tuned.state_dict(1)]
    spec = permutation_spec(mlp() if fault == "foreign spec" else fine_tuned.config)
    if fault == "nan":
        states[1]["hidden.0.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="cannot align b to a: "):
        align_ingredients(open_ingredients(states, names=["a", "b"]), spec)


def test_repositories_and_their_revisions(folders, local_hub):
    api, (first, second) = HfApi(), folders[:2]
    api.create_repo("someone/run")
    api.upload_folder(repo_id="someone/run", folder_path=first)
    api.create_branch("someone/run", branch="later")
    api.upload_folder(repo_id="someone/run", folder_path=second, revision="later")
    found = open_ingredients(["someone/run", "someone/run@later"])
    assert [ingredient.name for ingredient in found] == ["someone/run", "someone/run@later"]
    assert found[0].config["model_type"] == "sane_cnn"
    local = average_checkpoints(open_ingredients([first, second]))
    for name, tensor in average_checkpoints(found).items():
        assert torch.equal(tensor, local[name])


def test_files_without_configuration_are_compared_by_their_tensors(folders, tmp_path):
    for index in range(2):
        save_file(load_file(folders[index] / "model.safetensors"), tmp_path / f"{index}.safetensors")
    ingredients = open_ingredients([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    assert [ingredient.config for ingredient in ingredients] == [{}, {}]
