"""The pre-training loop: random windows of a zoo, two views, one optimizer, Accelerate around it."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core.adapters import adapter_size, save_adapter
from hf_sane.records.files import write_atomically
from hf_sane.records.run_record import RunRecord
from hf_sane.records.sources import pretrained_arguments
from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training.arguments import PretrainArguments
from hf_sane.training.behavior import BehaviorLoss
from hf_sane.training.checkpoints import PARTIAL, list_checkpoints, replace_folder, save_checkpoint
from hf_sane.training.data import Batches, TrainingData
from hf_sane.training.evaluation import evaluate_reconstruction, r2_from_sums
from hf_sane.training.preparation import build_model, check_fits, fit_extractor, one_cycle
from hf_sane.training.supervision import SupervisedLoss
from hf_sane.zoo.dataset import Zoo

RECORD_NAME = "run.json"  # beside the model
StepCallback = Callable[[int, float], None]


@dataclass
class Progress:
    """Optimizer steps done; saved inside every checkpoint."""

    step: int = 0

    def state_dict(self) -> dict[str, int]:
        """For `Accelerator.save_state`."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """For `Accelerator.load_state`."""
        self.step = state["step"]


@dataclass(frozen=True)
class PretrainResult:
    """What a run leaves behind.

    Attributes:
        folder: The SANE folder: config.json, model.safetensors, preprocessor_config.json, run.json. Of a LoRA run:
            adapter_config.json and adapter_model.safetensors in place of the first two.
        reconstruction_r2: On whole validation networks, over real normalised weights; NaN without any.
        loss: Of the last step, mean over processes; NaN when a finished run was resumed.
        steps: Optimizer steps of the whole run.
        seconds: Of this process, since it started or resumed.
        num_processes: Processes that trained together.
        is_main_process: Whether this one is the first of them, which writes files.
        network_config: Architecture of a training network, for the card; `None` if it was imported and is none of this library.
    """

    folder: Path
    reconstruction_r2: float
    loss: float
    steps: int
    seconds: float
    num_processes: int
    is_main_process: bool
    network_config: ZooConfig | None


@dataclass
class Run:
    """The parts of a run, after `Accelerator.prepare`."""

    arguments: PretrainArguments
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    batches: Batches
    extractor: SANEFeatureExtractor
    data: TrainingData
    behavior: BehaviorLoss | None
    supervision: SupervisedLoss | None
    num_steps: int
    steps_per_epoch: int
    progress: Progress

    def train_step(self) -> Tensor:
        """One optimizer step over `gradient_accumulation_steps` batches; returns its mean loss `[]`, detached.

        Batches are numbered through the whole run, and each is a pure function of its number and the seed: nothing has
        to be skipped or stored to resume.
        """
        accelerator, micro_steps = self.accelerator, self.arguments.gradient_accumulation_steps
        losses = []
        for micro_step in range(micro_steps):
            number = (self.progress.step * micro_steps + micro_step) * accelerator.num_processes
            batch = self.batches.batch(number + accelerator.process_index)
            batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
            indices = batch.pop("indices", None)
            with accelerator.accumulate(self.model):
                output = self.model(**batch)
                loss = output.loss
                if self.behavior is not None:
                    loss = self.behavior.combine(output, batch, self.progress.step)
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
        """Reconstruction R2 on whole validation networks, shared out among processes."""
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

    def save(self, folder: Path, record: RunRecord) -> None:
        """Write model (or its adapter), extractor and run record, and swap the finished folder in."""
        accelerator = self.accelerator
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            partial = folder.with_name(folder.name + PARTIAL)
            shutil.rmtree(partial, ignore_errors=True)
            model = accelerator.unwrap_model(self.model)
            state_dict = accelerator.get_state_dict(self.model)
            if self.arguments.lora:
                save_adapter(model, partial, base_model=self.arguments.base_model, state_dict=state_dict)
            else:
                model.save_pretrained(partial, state_dict=state_dict)
            self.extractor.save_pretrained(partial)
            record.save(partial / RECORD_NAME)
            replace_folder(partial, folder)
        accelerator.wait_for_everyone()


def pretrain(
    arguments: PretrainArguments,
    *,
    zoos: Sequence[Zoo] | None = None,
    extractor: SANEFeatureExtractor | None = None,
    on_step: StepCallback | None = None,
) -> PretrainResult:
    """Pre-train a SANE autoencoder on one or several zoos.

    Masked reconstruction of two views plus NT-Xent between them (arXiv:2406.09997, sections 3 and 4), AdamW with
    OneCycleLR. Runs on whatever `accelerate launch` was told: one process or many, CPU or GPU. Sets the global random
    seeds. An interrupted run with checkpoints continues with `resume`, to the same losses and weights, bit by bit.

    Args:
        arguments: All settings.
        zoos: Loaded zoos, in place of `arguments.zoo`; they are not streamed.
        extractor: A fitted weight tokenizer; when `None`, that of `arguments.pretrained`, or one fitted on the training
            splits.
        on_step: Called with (optimizer steps done, loss of the step) after every step. Reading the loss makes an
            accelerator wait, so this is for tests and notebooks.

    Returns:
        [`PretrainResult`]; on disk, `output_dir` holds model/, checkpoints/, logs/ and arguments.json.

    Raises:
        ValueError: If the zoos hold no training model, do not fit each other or the model, or a checkpoint was written
            with other settings.
        FileExistsError: If `output_dir` holds a run and `resume` was not asked for.
        FloatingPointError: If the loss is no longer finite.
    """
    record = RunRecord.start(seed=arguments.seed, arguments=arguments.to_dict())
    run = prepare_run(arguments, zoos, extractor)
    accelerator, progress = run.accelerator, run.progress
    bar = tqdm(
        total=run.num_steps,
        initial=progress.step,
        desc="pre-training",
        disable=not (arguments.progress_bar and accelerator.is_main_process),
    )
    loss, r2 = torch.tensor(math.nan), math.nan
    while progress.step < run.num_steps:
        loss = run.train_step()
        bar.update()
        step, last = progress.step, progress.step == run.num_steps
        if on_step is not None:
            on_step(step, accelerator.reduce(loss, "mean").item())
        if step % arguments.log_every_steps == 0 or last:
            values = {"loss": _finite(accelerator.reduce(loss, "mean").item(), step)}
            values["learning_rate"] = run.optimizer.param_groups[0]["lr"]
            accelerator.log(values, step=step)
            shown = {} if math.isnan(r2) else {"r2": f"{r2:.4f}"}
            bar.set_postfix({"loss": f"{values['loss']:.4f}", **shown})
        every = arguments.eval_every_epochs * run.steps_per_epoch
        if last or (every > 0 and step % every == 0):
            r2 = run.evaluate()
            accelerator.log({"reconstruction_r2": r2}, step=step)
        if arguments.checkpoint_every_steps > 0 and (step % arguments.checkpoint_every_steps == 0 or last):
            save_checkpoint(accelerator, _checkpoints(arguments), step, keep=arguments.keep_checkpoints)
    bar.close()
    if math.isnan(r2):  # resumed at its last step
        r2 = run.evaluate()
    folder = Path(arguments.output_dir) / "model"
    results = {"reconstruction_r2": r2, "loss": accelerator.reduce(loss, "mean").item(), "steps": progress.step}
    results["num_processes"] = accelerator.num_processes
    size = {"adapter": adapter_size(accelerator.unwrap_model(run.model))} if arguments.lora else {}
    record.finish(results | size, data={**run.data.describe(arguments), "steps_per_epoch": run.steps_per_epoch})
    run.save(folder, record)
    is_main_process = accelerator.is_main_process
    accelerator.end_training()
    return PretrainResult(
        folder=folder,
        seconds=record.seconds or 0.0,
        is_main_process=is_main_process,
        network_config=run.data.network_config,
        **results,
    )


def prepare_run(
    arguments: PretrainArguments, zoos: Sequence[Zoo] | None, extractor: SANEFeatureExtractor | None
) -> Run:
    """Everything before the first step: data, model, optimizer, `Accelerator.prepare`, and the checkpoint if resuming."""
    accelerator = make_accelerator(arguments)
    _claim_folder(arguments, accelerator)
    set_seed(arguments.seed)
    data = TrainingData.load(arguments, zoos)
    splits = data.train
    if extractor is None and arguments.pretrained is not None:
        name, where = pretrained_arguments(arguments.pretrained)
        extractor = SANEFeatureExtractor.from_pretrained(name, **where)
    by_kind = arguments.statistics_by_kind
    extractor = extractor or fit_extractor(splits, arguments.normalization, by_kind=by_kind)
    model = build_model(arguments, extractor, splits)
    check_fits(model, extractor, data.layouts)
    batches = data.batches(arguments, extractor, model.config.window_size)
    windows_per_step = arguments.batch_size * arguments.gradient_accumulation_steps * accelerator.num_processes
    steps_per_epoch = math.ceil(sum(data.num_models) / windows_per_step)
    num_steps = arguments.max_steps or arguments.num_epochs * steps_per_epoch
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
    # The schedule counts optimizer steps. A *prepared* scheduler would be advanced once per process instead.
    accelerator.register_for_checkpointing(scheduler, run.progress)
    set_seed(arguments.seed, device_specific=True)  # latent noise and dropout differ between processes
    if arguments.resume and (checkpoints := list_checkpoints(_checkpoints(arguments))):
        accelerator.load_state(str(checkpoints[-1]))
    settings = {k: v for k, v in arguments.to_dict().items() if isinstance(v, int | float | str | bool)}
    accelerator.init_trackers("pretraining", config=settings)
    return run


def make_accelerator(arguments: PretrainArguments) -> Accelerator:
    """Precision, accumulation and logging as the arguments say; one precision per process, a rule of Accelerate."""
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=None if arguments.log_with == "none" else arguments.log_with,
        project_config=ProjectConfiguration(
            project_dir=arguments.output_dir, logging_dir=f"{arguments.output_dir}/logs"
        ),
    )


def _checkpoints(arguments: PretrainArguments) -> Path:
    return Path(arguments.output_dir) / "checkpoints"


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"expected a finite loss, got {loss} at step {step}; lower learning_rate, keep max_grad_norm at 1, or look "
            "for exploded networks in the zoo"
        )
    return loss


def _claim_folder(arguments: PretrainArguments, accelerator: Accelerator) -> None:
    """Refuse to overwrite a run, or to continue one with other settings; then note the settings."""
    output_dir = Path(arguments.output_dir)
    settings = output_dir / "arguments.json"
    if settings.exists():
        if not arguments.resume:
            raise FileExistsError(
                f"{output_dir} already holds a run; continue it with resume=True, or choose another output_dir"
            )
        arguments.check_continues(json.loads(settings.read_text()))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with write_atomically(settings) as partial:
            partial.write_text(json.dumps(arguments.to_dict(), indent=2) + "\n")
    accelerator.wait_for_everyone()
