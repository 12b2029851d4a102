"""Build a zoo of trained networks.

    python scripts/build_zoo.py --recipe hyperparameter --num-models 640 --output runs/zoo
    python scripts/build_zoo.py --images mnist.npz --architecture cnn_s --num-models 128 --epochs 25 \
        --output runs/mnist

The options are those of `hf-sane zoo build` (`--help` lists them); a hyper-parameter with two values is sampled
between them. To continue an interrupted build, run the same command again.

Time and memory: 640 networks on scikit-learn's digits, 50 epochs, take about 4 minutes and 1 GB on 2 CPU cores.
"""

from hf_sane.records import run_script, tune_allocator
from hf_sane.workflows.build_zoo import BuildZooSettings, run_build_zoo
from hf_sane.workflows.command_line import script

main = script(BuildZooSettings, run_build_zoo, name="build_zoo.py")

if __name__ == "__main__":
    tune_allocator()
    run_script(main, name="build_zoo.py")
