"""Alignment of a zoo: functions stay, distances shrink, one permutation per run, files, errors."""

import pytest
import torch

from hf_sane.networks._stacked import StackedNetworks
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry.tracing._trace import trace_permutations
from hf_sane.zoo._alignment import align_zoo, aligned_tokens, token_permutations
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings


def unaligned(zoo):
    return Zoo({name: ZooSplit(split.table, zoo.facts) for name, split in zoo.splits.items()}, zoo.facts)


def test_aligned_networks_answer_as_before(tiny_zoo, digits):
    checked = 0
    for split in tiny_zoo.splits.values():
        before = split.networks()
        tokens = aligned_tokens(split)
        after = StackedNetworks(before.config, split.layout(0).tensors(tokens))
        expected = before.logits(digits.test_images[:20])
        torch.testing.assert_close(after.logits(digits.test_images[:20]), expected, rtol=1e-3, atol=1e-4)
        checked += int((tokens != split.stacked_tokens()).flatten(1).any(dim=1).sum())
    assert checked >= 40, "all but the reference must have moved"


def test_aligned_networks_are_closer_to_the_reference(tiny_zoo):
    final = tiny_zoo.splits["train"].final_epochs()
    before, after = final.stacked_tokens(), aligned_tokens(final)
    assert torch.equal(after[0], before[0]), "the reference is the first run at its last epoch"
    assert tiny_zoo.alignment.references == {final.column("architecture")[0]: final.run_ids[0]}
    distances = [(tokens - before[0]).norm(dim=(1, 2))[1:] for tokens in (before, after)]
    assert (distances[1] < distances[0]).all()


def test_the_permutation_of_the_last_epoch_serves_all(tiny_zoo):
    split = tiny_zoo.splits["test"]
    train = tiny_zoo.splits["train"].final_epochs()
    spec = permutation_spec(split.config(0))
    reference = train.state_dict(0)
    checked = 0
    for i in range(len(split)):
        run = split.select([j for j in range(len(split)) if split.run_ids[j] == split.run_ids[i]])
        permutation = match_weights(spec, reference, run.final_epochs().state_dict(0))
        expected = spec.apply(split.state_dict(i), permutation)
        tensors = split.layout(i).tensors(aligned_tokens(split.select([i]))[0])
        for name, tensor in expected.items():
            assert torch.equal(tensors[name], tensor)
        checked += 1
    assert checked == 8


def test_aligning_again_changes_nothing(tiny_zoo):
    again = align_zoo(unaligned(tiny_zoo))
    for architecture, permutation in tiny_zoo.alignment.permutations.items():
        for axis, index in permutation.items():
            assert torch.equal(index, again.alignment.permutations[architecture][axis])


def test_symmetries_of_ones_own_are_kept(tiny_zoo, digits):
    """Traced ones call the axes otherwise, so readers must not mix them up with those of the configuration."""
    (architecture,) = tiny_zoo.alignment.permutations
    spec = trace_permutations(tiny_zoo.splits["train"].model(0), digits.test_images[:3])
    assert spec.to_dict() != permutation_spec(tiny_zoo.splits["train"].config(0)).to_dict()
    again = align_zoo(unaligned(tiny_zoo), specs={architecture: spec})
    assert again.alignment.specs[architecture].sizes == spec.sizes
    for name, split in again.splits.items():
        assert torch.equal(aligned_tokens(split), aligned_tokens(tiny_zoo.splits[name]))


def test_networks_are_matched_in_pieces(tiny_zoo, monkeypatch):
    monkeypatch.setattr("hf_sane.zoo._alignment.MATCH_BYTES", 3 * 4 * 52 * 73)
    again = align_zoo(unaligned(tiny_zoo))
    for name, split in again.splits.items():
        assert torch.equal(aligned_tokens(split), aligned_tokens(tiny_zoo.splits[name]))


def test_a_reference_of_ones_own(tiny_zoo):
    reference = tiny_zoo.splits["test"].final_epochs().state_dict(0)
    aligned = align_zoo(unaligned(tiny_zoo), reference=reference)
    final = aligned.splits["test"].final_epochs()
    assert torch.equal(aligned_tokens(final)[0], final.tokens(0))
    assert set(aligned.alignment.references.values()) == {"given"}


def test_permuted_copies_of_the_reference_come_home(tiny_zoo):
    """Weight matching finds the way back exactly when there is one."""
    final = tiny_zoo.splits["train"].final_epochs()
    spec, state = permutation_spec(final.config(0)), final.state_dict(0)
    moved = spec.apply(state, spec.random(generator=torch.Generator().manual_seed(0)))
    home = spec.apply(moved, match_weights(spec, state, moved))
    assert any(not torch.equal(moved[name], state[name]) for name in state)
    assert all(torch.equal(home[name], state[name]) for name in state)


def test_alignment_survives_the_file(tiny_zoo, tmp_path):
    tiny_zoo.alignment.save(tmp_path)
    loaded = Alignment.load(tmp_path)
    assert loaded.references == tiny_zoo.alignment.references
    assert loaded.run_ids == tiny_zoo.alignment.run_ids
    checked = 0
    for architecture, permutation in tiny_zoo.alignment.permutations.items():
        assert loaded.permutations[architecture].keys() == permutation.keys()
        for axis, index in permutation.items():
            assert torch.equal(loaded.permutations[architecture][axis], index)
            checked += 1
    assert checked == 4
    assert Alignment.load(tmp_path / "elsewhere") is None


def test_what_cannot_be_aligned_is_refused(tiny_zoo):
    plain = unaligned(tiny_zoo).splits["train"]
    with pytest.raises(ValueError, match=r"expected an aligned zoo, .* align it with align_zoo\(zoo\)"):
        aligned_tokens(plain)
    empty = tiny_zoo.splits["train"].select([])
    with pytest.raises(ValueError, match=r"expected networks of one layout, got \[\]; select one of them first"):
        token_permutations(empty)
    alignment = tiny_zoo.alignment
    with pytest.raises(KeyError, match="no alignment for 1 runs of .*x.*999999.*; align this zoo again"):
        alignment.index("x", ["999999"])


def test_one_reference_cannot_serve_two_architectures(tiny_zoo, tmp_path, digits):
    other = build_zoo(
        ZooSettings(architecture="mlp", num_models=3, epochs=0, token_dim=73, progress_bar=False), digits, tmp_path
    )
    mixed = Zoo({"train": tiny_zoo.splits["train"], "test": other.splits["train"]}, tiny_zoo.facts)
    with pytest.raises(
        ValueError, match="expected one architecture to align to a reference, got .'sane_cnn-.*', 'sane_mlp-.*'."
    ):
        align_zoo(mixed, reference={})
