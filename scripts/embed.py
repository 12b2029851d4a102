"""Embed the networks of a zoo, or checkpoints, in one process or several.

    accelerate launch scripts/embed.py --zoo DIR_OR_REPO --sane runs/sane/model --output runs/embeddings
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 scripts/embed.py checkpoints/* \
        --sane runs/sane/model --output runs/embeddings

The options are those of `hf-sane embed` (`--help` lists them). Each process embeds every second, third, ... checkpoint
or batch of networks, with the same result as one process; the main process writes it.

Time and memory: 100 networks of 2,464 weights take seconds, most of them to start, and 0.6 GB per process.
"""

from hf_sane.records import run_script, tune_allocator
from hf_sane.workflows.command_line import script
from hf_sane.workflows.embed import EmbedSettings, run_embed

main = script(EmbedSettings, run_embed, name="embed.py")

if __name__ == "__main__":
    tune_allocator()
    run_script(main, name="embed.py")
