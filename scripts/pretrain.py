"""Pre-train a SANE autoencoder on a model zoo, in one process or several.

    accelerate launch scripts/pretrain.py --zoo DIR_OR_REPO --output runs/sane \
        --model '{"hidden_size": 128, "latent_dim": 64, "window_size": 52}' --epochs 50

    accelerate launch scripts/pretrain.py --zoo OTHER_ZOO --lora --from org/sane --output runs/adapter

The options are those of `hf-sane pretrain` (`--help` lists them); `--model` sets fields of `SANEConfig`. Several
processes: `accelerate launch --multi_gpu --num_processes 8 scripts/pretrain.py ...`; two on a CPU:
`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/pretrain.py ...`
(`accelerate launch --cpu --num_processes 2` silently runs one). `--streaming` reads zoos of any size, also from the
Hub, without storing them. `--resume` continues an interrupted run from its newest checkpoint. `--lora` trains an
adapter of a pretrained SANE (docs/how-to/lora.md).

Time and memory: a zoo of 1,000 small networks (52 tokens of 73 scalars), hidden size 128, 3 + 3 layers, 50 epochs
takes about 10 minutes and 1.5 GB on 2 CPU cores. The result, `OUTPUT/model`, loads with `SANEModel.from_pretrained`.
"""

from hf_sane.records import run_script, tune_allocator
from hf_sane.workflows.command_line import script
from hf_sane.workflows.pretrain import PretrainSettings, run_pretrain

main = script(PretrainSettings, run_pretrain, name="pretrain.py")

if __name__ == "__main__":
    tune_allocator()
    run_script(main, name="pretrain.py")
