"""Sample networks around trained ones, in one process or several.

    accelerate launch scripts/sample.py --zoo DIR_OR_REPO --sane runs/sane/model --output runs/sampled
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 scripts/sample.py --zoo DIR_OR_REPO \
        --sane runs/sane/model --num-candidates 1000 --output runs/sampled

The options are those of `hf-sane sample` (`--help` lists them). Each process decodes and evaluates every second,
third, ... batch of 64 candidates, with the same result as one process; the main process writes it.

Time and memory: 200 candidates of 2,464 weights take under a minute and 1 GB per process.
"""

from hf_sane.records import run_script, tune_allocator
from hf_sane.workflows.command_line import script
from hf_sane.workflows.sample import SampleSettings, run_sample

main = script(SampleSettings, run_sample, name="sample.py")

if __name__ == "__main__":
    tune_allocator()
    run_script(main, name="sample.py")
