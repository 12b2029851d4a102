"""How much of what full fine-tuning gains on the zoo of another dataset does a LoRA adapter of SANE recover?

    python scripts/pretrain.py --zoo DIGITS_ZOO --output_dir runs/tmp/sane --views permuted --model '{"latent_dim": 16, ...}' ...
    python scripts/build_zoo.py --recipe seed --images fashion.npz --image_size 8 --output_dir runs/tmp/fashion_zoo ...
    python benchmarks/adapt_sane.py --sane runs/tmp/sane/model --source_zoo DIGITS_ZOO --zoo runs/tmp/fashion_zoo \
        --work runs/tmp/adapt --output runs/lora/adapt_sane.json

Full fine-tuning and each kind of adapter train for the same steps on the same windows of the training split. The peak learning
rate of each, and the kind of adapter, are those with the best R2 on validation networks at the first seed; then all seeds are
judged on test networks. All keep the weight tokenizer of the pretrained model, so R2 is in the same units everywhere.

Every run is kept in `--work`: a benchmark that was interrupted goes on where it stopped. With the defaults 14 runs of 300 steps,
about 25 minutes and 2 GB on 2 CPU cores.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from hf_sane.core.adapters import quiet_peft
from hf_sane.core.allocator import tune_allocator
from hf_sane.core.run_record import RunRecord
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training.arguments import PretrainArguments
from hf_sane.training.evaluation import evaluate_reconstruction, r2_from_sums
from hf_sane.training.pretraining import pretrain
from hf_sane.zoo.dataset import Zoo, ZooSplit

PATH_MAPS = ["token_in", "latent_out", "latent_in", "token_out"]
BLOCK_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc_in", "fc_out"]
FULL = "full fine-tuning"
KINDS: dict[str, dict[str, Any]] = {
    FULL: {},
    "rank 4 in all maps": {"lora": True, "lora_rank": 4},
    "rank 2 in the blocks, path maps whole": {
        "lora": True,
        "lora_rank": 2,
        "lora_targets": BLOCK_MAPS,
        "lora_trained": PATH_MAPS,
    },
}


@dataclass(frozen=True)
class Experiment:
    """What all runs share."""

    sane: str
    zoo: Zoo
    source: Zoo
    work: Path
    steps: int
    batch_size: int
    noise: float

    def run(self, kind: str, learning_rate: float, seed: int) -> dict[str, Any]:
        """Adapt, or read what was adapted: validation and test R2, parameters, seconds."""
        folder = self.work / f"{kind.replace(' ', '_').replace(',', '')}-{learning_rate:g}-{seed}"
        if not (folder / "model" / "run.json").is_file():
            arguments = PretrainArguments(
                zoo=[self.zoo.facts.name],
                output_dir=str(folder),
                pretrained=self.sane,
                views=["permuted"],
                noise=self.noise,
                max_steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=learning_rate,
                seed=seed,
                eval_every_epochs=0,
                checkpoint_every_steps=max(1, self.steps // 4),
                keep_checkpoints=1,
                resume=True,
                log_with="none",
                progress_bar=False,
                **KINDS[kind],
            )
            pretrain(arguments, zoos=[self.zoo])
        record = RunRecord.load(folder / "model" / "run.json")
        model = SANEModel.from_pretrained(self.sane if kind != FULL else folder / "model")
        if kind != FULL:
            with quiet_peft():
                model = PeftModel.from_pretrained(model, str(folder / "model"))
        found = self.judge(model.eval())
        print(f"{folder.name}: validation R2 {found['validation_r2']:.4f}", flush=True)
        return found | {"seconds": record.seconds} | record.results.get("adapter", {})

    def judge(self, model: SANEModel) -> dict[str, float]:
        """R2 on validation and test networks of the new zoo, and on test networks of the old one."""
        extractor = SANEFeatureExtractor.from_pretrained(self.sane)

        def r2(split: ZooSplit) -> float:
            return r2_from_sums(evaluate_reconstruction(model, extractor, split, range(len(split))))

        splits = self.zoo.splits
        return {
            "validation_r2": r2(splits["validation"]),
            "test_r2": r2(splits["test"]),
            "source_test_r2": r2(self.source.splits["test"]),
        }


def measure(experiment: Experiment, rates: dict[str, list[float]], seeds: Sequence[int]) -> dict[str, Any]:
    """Choose on validation at the first seed, then judge all seeds on test networks."""
    before = experiment.judge(SANEModel.from_pretrained(experiment.sane).eval())
    search: dict[str, dict[str, float]] = {}
    chosen: dict[str, tuple[float, float]] = {}  # kind to (validation R2, learning rate)
    share: dict[str, float] = {}
    for kind in KINDS:
        tried = {rate: experiment.run(kind, rate, seeds[0]) for rate in rates["full" if kind == FULL else "lora"]}
        search[kind] = {f"{rate:g}": found["validation_r2"] for rate, found in tried.items()}
        chosen[kind] = max((found["validation_r2"], rate) for rate, found in tried.items())
        share[kind] = next(iter(tried.values())).get("share", 1.0)
    small = {kind: best for kind, best in chosen.items() if kind != FULL and share[kind] < 0.05}
    adapter = max(small, key=lambda kind: small[kind])
    runs = {kind: [experiment.run(kind, chosen[kind][1], seed) for seed in seeds] for kind in (FULL, adapter)}
    gains = {kind: [found["test_r2"] - before["test_r2"] for found in runs[kind]] for kind in runs}
    recovered = [ours / full for ours, full in zip(gains[adapter], gains[FULL], strict=True)]
    methods = {"pretrained, not adapted": before | {"parameters_trained": 0.0}}
    for kind, name in ((FULL, FULL), (adapter, f"LoRA: {adapter}")):
        keys = ("validation_r2", "test_r2", "source_test_r2", "seconds")
        methods[name] = {key: sum(found[key] for found in runs[kind]) / len(seeds) for key in keys}
        methods[name]["parameters_trained"] = share[kind]
    return {
        "methods": methods,
        "gain_recovered": sum(recovered) / len(recovered),
        "gain_recovered_by_seed": recovered,
        "test_r2_by_seed": {kind: [found["test_r2"] for found in found_runs] for kind, found_runs in runs.items()},
        "adapter": adapter,
        "adapter_share": share[adapter],
        "learning_rates": {kind: chosen[kind][1] for kind in runs},
        "validation_r2_of_the_search": search,
        "shares": share,
    }


def open_zoo(name: str) -> Zoo:
    """A zoo by folder, or `folder:config`."""
    folder, _, config = name.partition(":")
    return Zoo.load(folder, config or None)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and write the record."""
    tune_allocator()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sane", required=True, help="pretrained SANE folder")
    parser.add_argument("--source_zoo", required=True, help="zoo it was trained on: folder, or folder:config")
    parser.add_argument("--zoo", required=True, help="zoo to adapt to, of the same network shape")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--full_rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--lora_rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="run record")
    options = parser.parse_args(argv)
    settings = {name: value for name, value in vars(options).items() if name not in ("work", "output")}
    record = RunRecord.start(seed=options.seeds[0], arguments=settings)
    zoo, source = open_zoo(options.zoo), open_zoo(options.source_zoo)
    experiment = Experiment(options.sane, zoo, source, options.work, options.steps, options.batch_size, options.noise)
    results = measure(experiment, {"full": options.full_rates, "lora": options.lora_rates}, options.seeds)
    base = RunRecord.load(Path(options.sane) / "run.json")
    networks = {
        name: {split: len(part) for split, part in z.splits.items()}
        for name, z in zip(("zoo", "source"), (zoo, source), strict=True)
    }
    data = {"pretraining": base.command, "networks": networks, "split": "by training run, chosen on validation"}
    record.finish(results, data=data).save(options.output)
    print(
        f"recovered {results['gain_recovered']:.1%} of the gain with {results['adapter_share']:.1%} of the parameters"
    )
    return results


if __name__ == "__main__":
    main()
