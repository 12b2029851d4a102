"""Pre-train a SANE autoencoder on a model zoo.

    accelerate launch scripts/pretrain.py --zoo DIR_OR_REPO --output_dir runs/sane \
        --model '{"hidden_size": 128, "latent_dim": 64, "window_size": 52}' --num_epochs 50

    accelerate launch scripts/pretrain.py --zoo OTHER_ZOO --lora --from org/sane --output_dir runs/adapter

The settings are the fields of `hf_sane.training.settings.PretrainSettings` (`--help` lists them); `--model` passes fields of
`SANEConfig` on. Several processes: `accelerate launch --multi_gpu --num_processes 8 scripts/pretrain.py ...`; two on a CPU:
`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/pretrain.py ...` (`accelerate launch --cpu --num_processes 2`
silently runs one). `--streaming` reads zoos of any size, from the Hub too, without keeping them. An interrupted run
continues with `--resume` from its newest checkpoint (`--checkpoint_every_minutes`). `--lora` trains an adapter of a pretrained SANE (docs/lora.md).

Time and memory: a zoo of 1,000 small networks (52 tokens of 73 scalars), hidden size 128, 3 + 3 layers, 50 epochs takes
about 10 minutes and 1.5 GB on 2 CPU cores. The result, `OUTPUT_DIR/model`, loads with `SANEModel.from_pretrained`.
"""

from collections.abc import Sequence

from hf_sane.hub.adapters import write_pretraining_card
from hf_sane.records.allocator import tune_allocator
from hf_sane.records.failures import run_script
from hf_sane.training.pretraining import PretrainResult, pretrain
from hf_sane.training.settings import parse_arguments


def main(argv: Sequence[str] | None = None) -> PretrainResult:
    """Parse, train, describe, report."""
    tune_allocator()
    arguments = parse_arguments(argv)
    result = pretrain(arguments, describe=write_pretraining_card)
    if result.is_main_process:
        print(
            f"{result.folder}: reconstruction R2 {result.reconstruction_text} on validation networks, loss "
            f"{result.loss:.4f} after {result.steps} steps and {result.seconds:.0f} s on {result.num_processes} process(es)"
        )
    return result


if __name__ == "__main__":
    run_script(main, name="pretrain.py")
