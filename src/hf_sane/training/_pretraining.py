"""The pre-training loop with Accelerate: random windows of zoos, two views of each, and one optimizer."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, is_tensorboard_available, set_seed
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._adapters import adapter_size, save_adapter
from hf_sane.records._cadence import Cadence
from hf_sane.records._outputs import check_finished, output_folder
from hf_sane.records._progress import progress
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._behavior import BehaviorLoss
from hf_sane.training._checkpoints import is_finite, list_checkpoints, save_checkpoint
from hf_sane.training._data import TrainingData
from hf_sane.training._evaluation import evaluate_reconstruction, r2_from_sums
from hf_sane.training._preparation import build_model, check_fits, fit_extractor, one_cycle
from hf_sane.training._run_folder import JOB, RunFolder, open_run_folder
from hf_sane.training._settings import PretrainSettings
from hf_sane.training._supervision import SupervisedLoss
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.windows._sampler import WindowSampler

logger = logging.getLogger(__name__)
MODEL = "model"  # subfolder of a run for its result
StepCallback = Callable[[int, float], None]


@dataclass
class Progress:
    """Number of completed optimizer steps and their losses; part of every checkpoint."""

    step: int = 0
    loss: float = math.nan  # mean over processes, at the last checkpoint or at the end
    history: list[tuple[int, float]] = field(default_factory=list)  # steps and losses that were logged

    def state_dict(self) -> dict[str, Any]:
        """For `Accelerator.save_state`."""
        return {"step": self.step, "loss": self.loss, "history": list(self.history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """For `Accelerator.load_state`; older checkpoints have no losses."""
        self.step, self.loss = int(state["step"]), float(state.get("loss", math.nan))
        self.history = list(state.get("history", ()))


@dataclass(frozen=True)
class PretrainResult:
    """Result of a run.

    Attributes:
        folder: SANE folder with config.json, model.safetensors, preprocessor_config.json and run.json; for a LoRA run,
            adapter_config.json and adapter_model.safetensors replace the first two.
        reconstruction_r2: R2 of the real, normalised weights of whole validation networks; NaN if there are none.
        loss: Loss of the last step, averaged over processes.
        steps: Number of optimizer steps of the whole run.
        seconds: Seconds since this process started or resumed the run.
        num_processes: Number of processes.
        is_main_process: Whether this is the main process, which writes files.
        network_config: Architecture of a training network, for the card; `None` if it is not an architecture of this
            library.
        history: Steps and losses that were logged; none if the run had been finished before.
    """

    folder: Path
    reconstruction_r2: float
    loss: float
    steps: int
    seconds: float
    num_processes: int
    is_main_process: bool
    network_config: ZooConfig | None
    history: Sequence[tuple[int, float]] = ()

    @property
    def reconstruction_text(self) -> str:
        """R2 as text, with the reason if it is unknown."""
        if math.isnan(self.reconstruction_r2):
            return "unknown (no validation networks, or their weights are all equal)"
        return f"{self.reconstruction_r2:.4f}"


Describe = Callable[[Path, PretrainSettings, PretrainResult], object]


@dataclass
class Run:
    """Parts of a run, after `Accelerator.prepare`."""

    arguments: PretrainSettings
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    batches: WindowSampler
    extractor: SANEFeatureExtractor
    data: TrainingData
    behavior: BehaviorLoss | None
    supervision: SupervisedLoss | None
    num_steps: int
    steps_per_epoch: int
    progress: Progress

    def start(self, folder: RunFolder) -> None:
        """Set the random states, open the logs, and load the newest checkpoint if there is one."""
        accelerator = self.accelerator
        # Latent noise and dropout differ between processes.
        set_seed(self.arguments.seed, device_specific=True)
        if self.arguments.resume and (checkpoints := list_checkpoints(folder.checkpoints)):
            check_finished(checkpoints[-1])
            accelerator.load_state(str(checkpoints[-1]))
        settings = {k: v for k, v in self.arguments.to_dict().items() if isinstance(v, int | float | str | bool)}
        accelerator.init_trackers("pretraining", config=settings)

    def train_step(self) -> Tensor:
        """One optimizer step over `gradient_accumulation_steps` batches; returns its mean loss `[]`, detached.

        Each batch is a pure function of the seed and its number in the run, so a run resumes without skipping batches
        or storing the state of the data.
        """
        accelerator, micro_steps = self.accelerator, self.arguments.gradient_accumulation_steps
        losses = []
        for micro_step in range(micro_steps):
            number = (self.progress.step * micro_steps + micro_step) * accelerator.num_processes
            number += accelerator.process_index
            batch = self.batches.batch(number, with_indices=self.supervision is not None)
            batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
            indices = batch.pop("indices", None)
            with accelerator.accumulate(self.model):
                output = self.model(**batch)
                loss = output.loss
                if self.behavior is not None:
                    decode = accelerator.unwrap_model(self.model).decode
                    loss = self.behavior.combine(output, batch, self.progress.step, decode=decode)
                if self.supervision is not None and indices is not None:
                    loss = loss + self.supervision.term(output.latents, batch["attention_mask"], indices)
                accelerator.backward(loss)
                if accelerator.sync_gradients and self.arguments.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        self.scheduler.step()
        self.progress.step += 1
        return torch.stack(losses).mean()

    def evaluate(self) -> float:
        """Reconstruction R2 on whole validation networks, which are distributed over processes."""
        accelerator, sums = self.accelerator, torch.zeros(4, dtype=torch.float64)
        model = accelerator.unwrap_model(self.model)
        for split in self.data.validation:
            stride = max(1, math.ceil(len(split) / self.arguments.eval_models))
            indices = range(0, len(split), stride)[accelerator.process_index :: accelerator.num_processes]
            with accelerator.autocast():
                sums += evaluate_reconstruction(
                    model, self.extractor, split, indices, halo_size=self.arguments.halo_size
                )
        total = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
        return r2_from_sums(total)

    def save(self, found: PretrainResult, record: RunRecord, describe: Describe | None) -> None:
        """Save model (or its adapter), extractor, run record and card as a folder that appears only when complete."""
        accelerator = self.accelerator
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with output_folder(found.folder, JOB, replace=True) as partial:
                model = accelerator.unwrap_model(self.model)
                state_dict = accelerator.get_state_dict(self.model)
                if self.arguments.lora:
                    save_adapter(model, partial, base_model=self.arguments.base_model, state_dict=state_dict)
                else:
                    model.save_pretrained(partial, state_dict=state_dict)
                self.extractor.save_pretrained(partial)
                record.save(partial / RECORD)
                if describe is not None:
                    describe(partial, self.arguments, found)
        accelerator.wait_for_everyone()

    def end(self) -> None:
        """Close the logs and the connections between processes.

        The wrapper of the model for several processes must be deleted first: as the last owner of the connections, it
        would wait for their threads while holding Python's lock, which they need to free the last tensors.
        """
        if self.accelerator.num_processes > 1:
            self.model = self.accelerator.unwrap_model(self.model)
            self.accelerator.free_memory()
        self.accelerator.end_training()

    def require_finite(self, loss: Tensor, *, weights: bool) -> float:
        """Check that the loss is finite; returns its mean over processes.

        Args:
            loss: Loss of this process.
            weights: Also check parameters and the state of the optimizer, before they are saved.

        Raises:
            FloatingPointError: If one of them is not finite.
        """
        value = self.accelerator.reduce(loss, "mean").item()
        expected, got = "a finite loss", str(value)
        if math.isfinite(value):
            if not weights or is_finite(self.accelerator):
                return value
            expected, got = "finite weights", "NaN or infinity among them"
        raise FloatingPointError(
            f"expected {expected}, got {got} at step {self.progress.step}; lower learning_rate, keep max_grad_norm "
            "at 1, or look for diverged networks in the zoo"
        )


class _Checkpoints:
    """Saves checkpoints of a run, after a number of steps or at time intervals."""

    def __init__(self, arguments: PretrainSettings, folder: RunFolder, accelerator: Accelerator) -> None:
        self.arguments, self.folder, self.accelerator = arguments, folder, accelerator
        by_time = arguments.checkpoint_every_steps == 0
        self._cadence = Cadence(60 * arguments.checkpoint_every_minutes if by_time else 0)

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether to save after a step; the same in all processes."""
        if every := self.arguments.checkpoint_every_steps:
            return step % every == 0 or last
        if last or (step % self.arguments.log_every_steps and self.accelerator.num_processes > 1):
            return False
        due = torch.tensor(float(self._cadence.is_due()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(due, "sum").item())

    def save(self, step: int) -> None:
        """Save; every process must call it."""
        with self._cadence.saving():
            save_checkpoint(self.accelerator, self.folder.checkpoints, step, keep=self.arguments.keep_checkpoints)


def pretrain(
    arguments: PretrainSettings,
    *,
    zoos: Sequence[Zoo] | None = None,
    extractor: SANEFeatureExtractor | None = None,
    on_step: StepCallback | None = None,
    describe: Describe | None = None,
) -> PretrainResult:
    """Pre-train a SANE autoencoder on one or several zoos.

    The loss is the masked reconstruction error of two views plus NT-Xent between them (arXiv:2406.09997, sections 3
    and 4); the optimizer is AdamW with OneCycleLR. Runs on one or several processes, CPUs or GPUs, as configured by
    `accelerate launch`. Sets the global random seeds. With `resume`, an interrupted run continues from its newest
    checkpoint and reaches the same losses and weights, bit for bit; the result of a finished run is returned.

    Args:
        arguments: All settings.
        zoos: Loaded zoos, instead of `arguments.zoo`; they are not streamed.
        extractor: Fitted weight tokenizer; by default that of `arguments.from_`, or one fitted on the training
            splits.
        on_step: Callback after every step, with the number of completed optimizer steps and the loss of the step.
            Reading the loss synchronises with the accelerator, so this is for tests and notebooks.
        describe: Callback that adds a card and a report to the unfinished model folder, with the folder, the
            arguments and the result.

    Returns:
        [`PretrainResult`]; on disk, `output` holds model/, checkpoints/, logs/ and arguments.json.

    Raises:
        ValueError: If the zoos have no training networks, are incompatible with each other or the model, or a
            checkpoint was written with other settings.
        FileExistsError: If `output` holds anything else, or a run and `resume` is off.
        FolderInUseError: If another process is writing to `output`.
        InvalidFileError: If files of the newest checkpoint were changed or removed.
        FloatingPointError: If loss or weights are not finite; they are never saved as a checkpoint.
    """
    record = RunRecord.start(seed=arguments.seed, arguments=arguments.to_dict())
    accelerator = make_accelerator(arguments)
    with open_run_folder(arguments, accelerator) as folder:
        if folder.is_finished:
            folder.finish(keep_checkpoints=arguments.checkpoint_every_steps > 0)
            return _read_result(folder, TrainingData.load(arguments, zoos).network_config, accelerator)
        run = prepare_run(arguments, zoos, extractor, accelerator)
        if accelerator.is_main_process:
            folder.begin(arguments)
        accelerator.wait_for_everyone()
        run.start(folder)
        results = _train(run, _Checkpoints(arguments, folder, accelerator), on_step)
        # Rounding of sums depends on the number of threads and vector lanes, and training amplifies the differences.
        conditions = ("cpu", "machine", "vector_instructions", "torch_threads", "gpus")
        same_bits = {name: record.hardware[name] for name in conditions if name in record.hardware}
        facts = {"steps_per_epoch": run.steps_per_epoch, "same_bits_for": same_bits}
        record.finish(results, data={**run.data.describe(arguments), **facts})
        found = PretrainResult(
            folder=Path(arguments.output) / MODEL,
            reconstruction_r2=results["reconstruction_r2"],
            loss=results["loss"],
            steps=results["steps"],
            seconds=record.seconds or 0.0,
            num_processes=results["num_processes"],
            is_main_process=accelerator.is_main_process,
            network_config=run.data.network_config,
            history=run.progress.history,
        )
        run.save(found, record, describe)
        if accelerator.is_main_process:
            folder.finish(keep_checkpoints=arguments.checkpoint_every_steps > 0)
    run.end()
    return found


def _train(run: Run, checkpoints: _Checkpoints, on_step: StepCallback | None) -> dict[str, Any]:
    """Run all remaining steps; returns the results of the run."""
    arguments, accelerator, done = run.arguments, run.accelerator, run.progress
    bar = progress(
        total=run.num_steps,
        initial=done.step,
        desc="pre-training",
        unit="step",
        wanted=arguments.progress_bar and accelerator.is_main_process,
    )
    loss, r2 = torch.tensor(done.loss), math.nan
    while done.step < run.num_steps:
        loss = run.train_step()
        bar.update()
        step, last = done.step, done.step == run.num_steps
        if on_step is not None:
            on_step(step, accelerator.reduce(loss, "mean").item())
        is_due, is_logged = checkpoints.is_due(step, last=last), step % arguments.log_every_steps == 0 or last
        if is_due or is_logged:
            done.loss = run.require_finite(loss, weights=is_due or last)
        if is_logged:
            values = {"loss": done.loss, "learning_rate": run.optimizer.param_groups[0]["lr"]}
            accelerator.log(values, step=step)
            done.history.append((step, done.loss))
            shown = {} if math.isnan(r2) else {"r2": f"{r2:.4f}"}
            bar.set_postfix({"loss": f"{values['loss']:.4f}", **shown})
        every = arguments.eval_every_epochs * run.steps_per_epoch
        if last or (every > 0 and step % every == 0):
            r2 = run.evaluate()
            accelerator.log({"reconstruction_r2": r2}, step=step)
        if is_due:
            checkpoints.save(step)
    bar.close()
    if math.isnan(r2):  # resumed after its last step
        r2 = run.evaluate()
    results = {"reconstruction_r2": r2, "loss": accelerator.reduce(loss, "mean").item(), "steps": done.step}
    results["num_processes"] = accelerator.num_processes
    size = {"adapter": adapter_size(accelerator.unwrap_model(run.model))} if arguments.lora else {}
    return results | size


def _read_result(folder: RunFolder, network_config: ZooConfig | None, accelerator: Accelerator) -> PretrainResult:
    """Result of a finished run."""
    record = RunRecord.load(folder.model / RECORD)
    # The record has null if there was nothing to measure.
    r2, loss = record.results["reconstruction_r2"], record.results.get("loss")
    return PretrainResult(
        folder=folder.model,
        reconstruction_r2=math.nan if r2 is None else float(r2),
        loss=math.nan if loss is None else float(loss),
        steps=int(record.results["steps"]),
        seconds=0.0,
        num_processes=int(record.results["num_processes"]),
        is_main_process=accelerator.is_main_process,
        network_config=network_config,
    )


def prepare_run(
    arguments: PretrainSettings,
    zoos: Sequence[Zoo] | None = None,
    extractor: SANEFeatureExtractor | None = None,
    accelerator: Accelerator | None = None,
) -> Run:
    """Prepare data, model and optimizer, which checks all settings before anything is written."""
    accelerator = accelerator or make_accelerator(arguments)
    set_seed(arguments.seed)
    data = TrainingData.load(arguments, zoos)
    splits = data.train
    if extractor is None and arguments.from_ is not None:
        extractor = SANEFeatureExtractor.load(arguments.from_, subfolder=arguments.from_subfolder)
    by_kind = arguments.statistics_by_kind
    extractor = extractor or fit_extractor(splits, arguments.normalization, by_kind=by_kind)
    model = build_model(arguments, extractor, splits)
    check_fits(model, extractor, data.layouts)
    extractor = deepcopy(extractor).learn_orders(
        data.layouts.values()
    )  # networks are embedded in the channel order of training
    batches = data.batches(arguments, extractor, model.config.window_size)
    windows_per_step = arguments.batch_size * arguments.gradient_accumulation_steps * accelerator.num_processes
    steps_per_epoch = math.ceil(sum(data.num_models) / windows_per_step)
    num_steps = arguments.max_steps or arguments.epochs * steps_per_epoch
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(parameters, lr=arguments.learning_rate, weight_decay=arguments.weight_decay, fused=True)
    scheduler = one_cycle(optimizer, arguments, num_steps)
    behavior = BehaviorLoss.from_arguments(arguments, model.config, extractor, splits, accelerator.device)
    supervision = SupervisedLoss.from_arguments(arguments, splits, accelerator.device)
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    run = Run(
        arguments=arguments,
        accelerator=accelerator,
        model=prepared_model.train(),
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        batches=batches,
        extractor=extractor,
        data=data,
        behavior=behavior,
        supervision=supervision,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        progress=Progress(),
    )
    # The schedule counts optimizer steps; a *prepared* scheduler would advance once per process instead.
    accelerator.register_for_checkpointing(scheduler, run.progress)
    return run


def make_accelerator(arguments: PretrainSettings) -> Accelerator:
    """Accelerator with the precision, accumulation and logging of a run; Accelerate has one precision per process."""
    log_with = None if arguments.log_with == "none" else arguments.log_with
    if log_with == "tensorboard" and not is_tensorboard_available():
        logger.warning(
            "losses are not logged, since TensorBoard is not installed: pip install 'hf_sane[train]', or pass "
            "--log-with none"
        )
        log_with = None
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=log_with,
        project_config=ProjectConfiguration(project_dir=arguments.output, logging_dir=f"{arguments.output}/logs"),
    )
