"""The pre-training loop on a real, tiny zoo: it learns, it resumes to the last bit, it runs on two processes."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from pretraining_runs import train
from safetensors.torch import load_file

from hf_sane.models.losses_sane import masked_reconstruction_loss
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._images import load_images
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._locks import folder_lock
from hf_sane.records._manifests import MANIFEST, UNFINISHED
from hf_sane.records._outputs import check_finished
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import (
    evaluate_reconstruction,
    r2_from_sums,
    read_models,
    reconstruct_tokens,
    reconstruction_sums,
)
from hf_sane.training._preparation import build_model, fit_extractor, one_cycle, sample_tokens
from hf_sane.training._pretraining import Run, make_accelerator, pretrain
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings

TINY_MODEL = {
    "hidden_size": 16,
    "latent_dim": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "window_size": 16,
    "max_positions": [64, 8, 16],
    "latent_noise": 0.1,
}


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    arguments = ZooSettings(
        architecture="mlp",
        architecture_settings={"hidden_sizes": [4]},
        num_models=20,
        epochs=2,
        keep_epochs=[1, 2],
        token_dim=16,
        learning_rate=[1e-2],
        progress_bar=False,
    )
    build_zoo(arguments, load_images("digits", train_limit=100, validation_limit=50, test_limit=50), folder)
    return folder


@pytest.fixture(scope="session")
def zoo(zoo_folder):
    return Zoo.load(zoo_folder)


def settings(output, **changes):
    defaults = {
        "zoo": ["unused"],
        "output": str(output),
        "model": TINY_MODEL,
        "batch_size": 8,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "num_permutations": 5,
        "log_with": "none",
        "progress_bar": False,
    }
    return PretrainSettings(**defaults | changes)


def weights(result):
    return load_file(result.folder / "model.safetensors")


def test_it_learns_and_leaves_a_loadable_folder(tmp_path, zoo_folder):
    arguments = settings(tmp_path / "run", zoo=[str(zoo_folder)], max_steps=None, epochs=40, noise=0.05)
    losses = []
    result = pretrain(arguments, on_step=lambda _, loss: losses.append(loss))
    assert result.steps == len(losses) == 40 * math.ceil(28 / 8)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert 0.3 < result.reconstruction_r2 < 1
    model, info = SANEModel.from_pretrained(result.folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.token_dim == 16
    extractor = SANEFeatureExtractor.from_pretrained(result.folder)
    split = Zoo.load(zoo_folder).splits["validation"]
    sums = evaluate_reconstruction(model, extractor, split, range(len(split)))
    assert r2_from_sums(sums) == pytest.approx(result.reconstruction_r2, abs=1e-5)
    record = RunRecord.load(result.folder / "run.json")
    assert record.results["reconstruction_r2"] == result.reconstruction_r2
    assert record.results["steps"] == result.steps
    assert record.data["train_models"] == [28]
    assert record.arguments["noise"] == 0.05
    check_finished(result.folder)
    assert {path.name for path in result.folder.parent.iterdir()} == {"arguments.json", "model"}


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_same_arguments_same_weights_and_another_seed_others(tmp_path, zoo, num_threads):
    """To the last bit, for as many threads; the record says that the number matters."""
    first, second = (weights(train(settings(tmp_path / str(i)), zoo)[1]) for i in range(2))
    other = weights(train(settings(tmp_path / "other", seed=1), zoo)[1])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    (path,) = (tmp_path / "0").rglob("run.json")
    conditions = RunRecord.load(path).data["same_bits_for"]
    assert conditions["torch_threads"] == num_threads
    assert conditions["vector_instructions"] == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stop_after", [3, 5])
def test_an_interrupted_run_resumes_to_the_last_bit(tmp_path, zoo, accumulation, stop_after):
    changes = {"checkpoint_every_steps": 3, "gradient_accumulation_steps": accumulation}
    whole, finished = train(settings(tmp_path / "whole", **changes), zoo)
    before, nothing = train(settings(tmp_path / "cut", **changes), zoo, stop_after)
    assert nothing is None
    after, resumed = train(settings(tmp_path / "cut", resume=True, **changes), zoo)
    restart = stop_after - stop_after % 3 if stop_after % 3 else stop_after - 3  # interrupted before step 3 was saved
    assert before[:restart] + after == whole
    assert len(whole) == 8
    expected, got = weights(finished), weights(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.reconstruction_r2 == finished.reconstruction_r2


def test_resuming_without_the_noise_state_would_differ(tmp_path, zoo):
    """The comparison above can fail: latent noise comes from the random state that a checkpoint restores."""
    whole, _ = train(settings(tmp_path / "whole", checkpoint_every_steps=3), zoo)
    train(settings(tmp_path / "cut", checkpoint_every_steps=3), zoo, stop_after=4)
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").iterdir()
    for name in ("random_states_0.pkl", MANIFEST):
        (checkpoint / name).unlink()
    after, _ = train(settings(tmp_path / "cut", checkpoint_every_steps=3, resume=True), zoo)
    assert len(after) == 5
    assert after != whole[3:]


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, zoo):
    losses, result = train(settings(tmp_path, resume=True), zoo)
    assert len(losses) == result.steps == 8


def test_a_finished_run_resumes_to_itself(tmp_path, zoo):
    changes = {"checkpoint_every_steps": 4}
    _, first = train(settings(tmp_path, **changes), zoo)
    expected = weights(first)
    losses, again = train(settings(tmp_path, resume=True, **changes), zoo)
    assert losses == []
    assert (again.reconstruction_r2, again.loss) == (first.reconstruction_r2, first.loss)
    assert all(torch.equal(expected[name], value) for name, value in weights(again).items())


def test_a_run_that_lost_its_end_resumes_to_the_same_record(tmp_path, zoo):
    """Killed between its last checkpoint and its model: no step is left to measure a loss in."""
    changes = {"checkpoint_every_steps": 4}
    _, first = train(settings(tmp_path, **changes), zoo)
    shutil.rmtree(first.folder)
    losses, again = train(settings(tmp_path, resume=True, **changes), zoo)
    assert losses == []
    assert (again.reconstruction_r2, again.loss) == (first.reconstruction_r2, first.loss)
    assert RunRecord.load(again.folder / "run.json").results["loss"] == first.loss


def work_on_two_processes(folder, zoo_folder, name, stop_after, resume):
    torch.set_num_threads(1)
    arguments = settings(
        Path(folder) / name,
        checkpoint_every_steps=2,
        batch_size=4,
        max_steps=6,
        gradient_accumulation_steps=2,
        resume=resume,
    )
    losses, result = train(arguments, Zoo.load(zoo_folder), stop_after)
    summary = [losses, result and result.num_processes, result and result.reconstruction_r2]
    rank = torch.distributed.get_rank()
    Path(folder, f"{name}-{resume}-{rank}.json").write_text(json.dumps(summary))
    torch.distributed.barrier()  # a process that leaves early cuts the connection that the other may still read from


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_train_together_and_resume_to_the_last_bit(tmp_path, zoo_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # Accelerate warns where it is not set
    for name, stop_after, resume in (("whole", None, False), ("cut", 3, False), ("cut", None, True)):
        debug_launcher(
            work_on_two_processes, (str(tmp_path), str(zoo_folder), name, stop_after, resume), num_processes=2
        )
    read = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    whole, num_processes, r2 = read["whole-False-0"]
    assert num_processes == 2
    assert read["whole-False-1"] == read["whole-False-0"]
    after, _, resumed_r2 = read["cut-True-0"]
    assert len(whole) == 6
    assert after == whole[2:]
    assert resumed_r2 == r2
    expected, got = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert len(list((tmp_path / "cut" / "checkpoints" / "step-00000006").glob("random_states_*.pkl"))) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16"},
        {"views": ["aligned"]},
        {"views": ["original", "original"]},
        {"second_network": "same_run"},
        {
            "supervised_weight": 0.5,
            "behavior_weight": 0.5,
            "behavior_data": "digits",
            "model": {**TINY_MODEL, "window_size": 64},
        },
        {"activation_checkpointing": True},
        {"max_grad_norm": 0.0},
        {"normalization": "none"},
        {"normalization": "robust"},
        {"initial_tokens": 0},
        {"erase": 0.2},
        {"model": {**TINY_MODEL, "contrast_weight": 0}},
        {"model": {**TINY_MODEL, "window_size": 64, "position_embedding": "sinusoidal"}},
        {
            "behavior_weight": 0.5,
            "behavior_latent_noise": 0.3,
            "behavior_data": "digits",
            "model": {**TINY_MODEL, "window_size": 64},
        },
        {"log_with": "tensorboard", "eval_every_epochs": 1, "log_every_steps": 1, "progress_bar": True},
        {"halo_size": 4, "eval_models": 1},
    ],
    ids=str,
)
def test_every_option_runs(tmp_path, zoo, changes):
    losses, result = train(settings(tmp_path / "run", max_steps=5, **changes), zoo)
    assert len(losses) == 5
    assert all(map(math.isfinite, losses))
    assert math.isfinite(result.reconstruction_r2)
    assert bool(list((tmp_path / "run").rglob("events.out.*"))) == (changes.get("log_with") == "tensorboard")


def test_without_tensorboard_losses_are_not_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_sane.training._pretraining.is_tensorboard_available", lambda: False)
    assert make_accelerator(settings(tmp_path / "run", log_with="tensorboard")).log_with == []
    assert "losses are not logged, since TensorBoard is not installed: pip install 'hf_sane[train]'" in caplog.text


def test_the_second_view_of_another_checkpoint_changes_training(tmp_path, zoo):
    changes = {"second_network": "same_run", "max_steps": 3}
    losses, _ = train(settings(tmp_path / "run", **changes), zoo)
    again, _ = train(settings(tmp_path / "again", **changes), zoo)
    plain, _ = train(settings(tmp_path / "plain", max_steps=3), zoo)
    assert losses == again
    assert losses[0] != plain[0]


def test_noise_on_latents_reaches_the_behavioural_loss(tmp_path, zoo):
    """A step with it goes elsewhere: the losses differ, and are the same again for the same seed."""
    changes = {"behavior_weight": 0.5, "behavior_data": "digits", "model": {**TINY_MODEL, "window_size": 64}}
    found = [
        train(settings(tmp_path / f"run_{run}", max_steps=1, behavior_latent_noise=noise, **changes), zoo)[0]
        for run, noise in enumerate((0.0, 0.5, 0.5))
    ]
    assert found[0] != found[1] == found[2]


def test_continuing_from_a_trained_model(tmp_path, zoo):
    _, first = train(settings(tmp_path / "first", max_steps=60), zoo)
    fresh, _ = train(settings(tmp_path / "fresh", max_steps=2), zoo)
    changes = {"from_": str(first.folder), "model": {"latent_noise": 0.0}, "max_steps": 2}
    changes["normalization"] = "robust"  # for a new weight tokenizer; this run goes on with the old one
    continued, result = train(settings(tmp_path / "second", **changes), zoo)
    assert continued[0] < fresh[0]
    config = SANEModel.from_pretrained(result.folder).config
    assert (config.latent_dim, config.latent_noise) == (8, 0.0)
    extractors = [SANEFeatureExtractor.from_pretrained(run.folder) for run in (first, result)]
    assert extractors[0].to_dict() == extractors[1].to_dict()

    settings_of_model = json.loads((first.folder / "config.json").read_text())
    planted = settings_of_model | {"auto_map": {"AutoModel": "org/stranger--code.Model"}}
    (first.folder / "config.json").write_text(json.dumps(planted))
    with pytest.raises(InvalidFileError, match=r"config\.json"):  # it is not as the first run wrote it
        train(settings(tmp_path / "third", **changes), zoo)
    (first.folder / MANIFEST).unlink()
    _, third = train(settings(tmp_path / "third", **changes), zoo)
    assert "stranger" not in (third.folder / "config.json").read_text()


REMEDY = r"choose another output folder; to continue, repeat the call with resume=True"


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, zoo):
    train(settings(tmp_path / "done"), zoo)
    with pytest.raises(FileExistsError, match=f"already holds a finished run; {REMEDY}"):
        train(settings(tmp_path / "done"), zoo)
    model = re.escape(str(tmp_path / "done" / "model"))
    remedy = rf"use those, or another output folder \(with --from {model}, it continues from this run\)$"
    with pytest.raises(ValueError, match=rf"other settings of noise: expected \[0.1\], got \[0.2\]; {remedy}"):
        train(settings(tmp_path / "done", resume=True, noise=0.2), zoo)
    train(settings(tmp_path / "cut", checkpoint_every_steps=2), zoo, stop_after=5)
    message = f"already holds an interrupted run with the checkpoint step-00000004; {REMEDY}"
    with pytest.raises(FileExistsError, match=message):
        train(settings(tmp_path / "cut", checkpoint_every_steps=2), zoo)
    with pytest.raises(ValueError, match=r"cut/model, it continues from the end of this run\)$"):
        train(settings(tmp_path / "cut", checkpoint_every_steps=2, resume=True, noise=0.2), zoo)


def test_files_of_somebody_are_refused_before_the_zoo_is_read(tmp_path):
    for name in ("README.md", "model/README.md"):
        path = tmp_path / name.replace("/", "-") / name
        path.parent.mkdir(parents=True)
        path.write_text("theirs")
        with pytest.raises(FileExistsError, match="not ours to replace"):
            pretrain(settings(tmp_path / name.replace("/", "-"), zoo=[str(tmp_path / "nope")], resume=True))
        assert path.read_text() == "theirs"
        path.unlink()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_failed_start_leaves_nothing(tmp_path, zoo):
    with pytest.raises((OSError, ValueError)):
        pretrain(settings(tmp_path / "run", zoo=[str(tmp_path / "nope")]))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="expected tokens of 17 scalars"):
        train(settings(tmp_path / "run", model={**TINY_MODEL, "token_dim": 17}), zoo)
    assert not list(tmp_path.iterdir())
    losses, _ = train(settings(tmp_path / "run"), zoo)
    assert len(losses) == 8


def test_an_interruption_before_the_first_checkpoint_locks_nothing(tmp_path, zoo):
    whole, _ = train(settings(tmp_path / "whole", noise=0.2), zoo)
    train(settings(tmp_path / "run", log_with="tensorboard"), zoo, stop_after=2)
    assert (tmp_path / "run" / UNFINISHED).is_file()
    losses, _ = train(settings(tmp_path / "run", noise=0.2), zoo)
    assert losses == whole
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"arguments.json", "model"}


def test_checkpoints_come_by_time_unless_steps_are_asked_for_and_go_in_the_end(tmp_path, zoo):
    changes = {"checkpoint_every_minutes": 1e-9}
    whole, finished = train(settings(tmp_path / "whole", checkpoint_every_minutes=0.0), zoo)
    for steps, kept in ((0, False), (4, True)):
        folder = tmp_path / f"cut-{steps}"
        before, _ = train(settings(folder, checkpoint_every_steps=steps, **changes), zoo, stop_after=6)
        checkpoints = [path.name for path in (folder / "checkpoints").iterdir()]
        newest = int(max(checkpoints)[5:])
        assert steps == 0 or checkpoints == ["step-00000004"]
        after, resumed = train(settings(folder, checkpoint_every_steps=steps, resume=True, **changes), zoo)
        assert before[:newest] + after == whole
        assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(finished).items())
        assert (folder / "checkpoints").exists() == kept


def test_a_damaged_checkpoint_is_not_continued_from(tmp_path, zoo):
    train(settings(tmp_path, checkpoint_every_steps=3), zoo, stop_after=5)
    path = next(tmp_path.rglob("model.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidFileError, match="model.safetensors: expected the content that .* lists"):
        train(settings(tmp_path, checkpoint_every_steps=3, resume=True), zoo)


def test_an_edited_card_of_a_finished_run_stays(tmp_path, zoo):
    _, first = train(settings(tmp_path / "run"), zoo)
    (first.folder / "README.md").write_text("mine")
    _, again = train(settings(tmp_path / "run", resume=True), zoo)
    assert (again.reconstruction_r2, again.steps) == (first.reconstruction_r2, 8)
    assert (first.folder / "README.md").read_text() == "mine"


def test_two_runs_do_not_write_one_folder(tmp_path, zoo):
    with folder_lock(tmp_path / "run"), pytest.raises(OSError, match="run is being written by process"):
        train(settings(tmp_path / "run"), zoo)
    train(settings(tmp_path / "run"), zoo)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_loss_that_diverges_stops_the_run(tmp_path, zoo):
    with pytest.raises(
        FloatingPointError, match=r"expected a finite loss, got (nan|inf) at step \d+; lower learning_rate"
    ):
        train(settings(tmp_path, learning_rate=1e30, max_grad_norm=0.0, max_steps=20, log_every_steps=1), zoo)


def test_what_is_not_finite_never_takes_the_place_of_a_good_checkpoint(tmp_path, zoo, monkeypatch):
    changes = {"checkpoint_every_steps": 3, "log_every_steps": 1000, "max_steps": 20}
    wild = {**changes, "learning_rate": 1e30, "max_grad_norm": 0.0}
    with pytest.raises(FloatingPointError, match=r"expected (a finite loss|finite weights), got .* at step 3;"):
        train(settings(tmp_path / "wild", **wild), zoo)
    assert not (tmp_path / "wild" / "checkpoints").exists()
    train(settings(tmp_path / "good", **changes), zoo, stop_after=8)
    kept = {path: path.read_bytes() for path in (tmp_path / "good" / "checkpoints").rglob("*") if path.is_file()}
    step = Run.train_step

    def diverge(run):
        loss = step(run)
        with torch.no_grad():
            next(iter(run.model.parameters())).view(-1)[0] = math.nan
        return loss

    monkeypatch.setattr(Run, "train_step", diverge)
    with pytest.raises(FloatingPointError, match="expected (a finite loss|finite weights), got"):
        train(settings(tmp_path / "good", resume=True, **changes), zoo)
    assert {path: path.read_bytes() for path in kept} == kept
    assert len({path.parent for path in kept}) == 2
    with pytest.raises(FloatingPointError, match="expected (a finite loss|finite weights), got .* at step 1;"):
        train(settings(tmp_path / "end", max_steps=1), zoo)
    assert not (tmp_path / "end" / "model").exists()


def test_zoos_that_do_not_fit_are_refused(tmp_path, zoo, zoo_folder):
    empty = Zoo({**zoo.splits, "train": zoo.splits["train"].select([])}, zoo.facts)
    with pytest.raises(ValueError, match=r"expected training networks in every zoo, got \[0\]; build larger zoos"):
        train(settings(tmp_path / "empty"), empty)
    with pytest.raises(ValueError, match=r"expected tokens of 17 scalars, got a zoo with 16; remove token_dim"):
        train(settings(tmp_path / "token", model={**TINY_MODEL, "token_dim": 17}), zoo)
    other = build_zoo(
        ZooSettings(architecture="mlp", architecture_settings={"hidden_sizes": [4]}, num_models=4, epochs=0,
                    token_dim=20, split_shares=[0.5, 0.25, 0.25], progress_bar=False),
        load_images("digits", train_limit=50, validation_limit=50, test_limit=50),
        tmp_path / "other",
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"expected zoos with equal \(token_dim, token_layout, batch_norm\), got .*16.*20"
    ):
        fit_extractor([zoo.splits["train"], other.splits["train"]], "standardize")


def test_sampled_tokens_are_normalised_real_and_as_many_as_asked(zoo):
    split = zoo.splits["train"]
    extractor = fit_extractor([split], "standardize")
    available = len(split) * split.layout(0).num_tokens
    for wanted in (10, 100, 500, 10**6):
        tokens, mask = sample_tokens([split, split], extractor, wanted)
        assert 0.5 * min(wanted, 2 * available) <= len(tokens) <= 2 * min(wanted, 2 * available)
        assert tokens.shape == mask.shape
        assert (tokens[~mask] == 0).all()
    assert tokens[mask].std().item() == pytest.approx(1.0, abs=0.1)


class LowRankSplit:
    """Stands in for a split of networks whose tokens lie in a subspace."""

    def __init__(self, split, seed):
        self._layout, (count, num_tokens, token_dim) = split.layout(0), split.stacked_tokens().shape
        factors = torch.randn(count, num_tokens, 8, generator=torch.Generator().manual_seed(seed))
        basis = torch.randn(8, token_dim, generator=torch.Generator().manual_seed(0))
        self.tokens = factors @ basis * self._layout.weight_mask

    def __len__(self):
        return len(self.tokens)

    def column(self, name):
        return [name] * len(self)

    def layout(self, index):
        return self._layout

    def select(self, index):
        assert len(index) == len(self)
        return self

    def stacked_tokens(self):
        return self.tokens


def test_the_linear_path_starts_from_the_zoo(zoo, tmp_path):
    split, held_out = (LowRankSplit(zoo.splits["train"], seed) for seed in (1, 2))
    extractor = fit_extractor([zoo.splits["train"]], "none")
    layout, tokens = next(read_models(held_out, range(len(held_out))))
    r2 = {}
    for count in (0, 10_000):
        torch.manual_seed(0)
        model = build_model(settings(tmp_path, initial_tokens=count), extractor, [split]).eval()
        decoded = reconstruct_tokens(model, tokens, layout)
        r2[count] = r2_from_sums(reconstruction_sums(tokens, decoded, layout.weight_mask))
    assert r2[10_000] > 0.9
    assert r2[10_000] > r2[0] + 0.1


def test_a_head_without_gradient_is_frozen(zoo, tmp_path):
    splits = [zoo.splits["train"]]
    extractor = fit_extractor(splits, "none")
    for changes, learns in (({}, True), ({"views": ["aligned"]}, False), ({"model": {"contrast_weight": 0}}, False)):
        model = build_model(settings(tmp_path, **changes), extractor, splits)
        assert all(parameter.requires_grad == learns for parameter in model.projection_head.parameters())


def test_reconstruction_sums_add_up_to_r2():
    torch.manual_seed(0)
    original, mask = torch.randn(7, 5, 4), torch.rand(5, 4) < 0.6
    decoded = original + 0.3 * torch.randn(7, 5, 4)
    whole = reconstruction_sums(original, decoded, mask)
    parts = reconstruction_sums(original[:3], decoded[:3], mask) + reconstruction_sums(original[3:], decoded[3:], mask)
    assert torch.allclose(whole, parts)
    real = original[:, mask]
    error = masked_reconstruction_loss(decoded, original, mask.expand(7, 5, 4))
    assert r2_from_sums(whole) == pytest.approx(1 - error.item() / real.var(correction=0).item(), abs=1e-5)
    assert math.isnan(r2_from_sums(torch.zeros(4)))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 10, 33])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.99])
def test_the_schedule_rises_and_falls_for_every_length(num_steps, share):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    arguments = settings("unused", warmup_share=share, learning_rate=0.5)
    schedule = one_cycle(optimizer, arguments, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) <= 0.5 + 1e-9
    if num_steps >= 10:
        assert max(rates) > 0.4
        assert rates[-1] < 0.02
