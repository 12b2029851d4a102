"""Measure how much of the gain of full fine-tuning on another zoo a LoRA adapter of SANE recovers.

    make demo
    python scripts/build_zoo.py --recipe seed --name "Fashion-MNIST CNNs" \
        --images ../shared/data/images/fashion_mnist_20k.npz \
        --image-size 8 --train-limit 1000 --validation-limit 500 --test-limit 1000 --num-models 80 --epochs 15 \
        --keep-epochs 5,10,15 \
        --initializations kaiming_normal --optimizers sgd --learning-rate 5e-2 --weight-decay 5e-3 \
        --output runs/tmp/fashion_sgd
    python benchmarks/adapt_sane.py --sane demo_output/sane --source-zoo demo_output/zoos:seed \
        --zoo runs/tmp/fashion_sgd \
        --work runs/tmp/adapt --output runs/lora/adapt_sane.json

Full fine-tuning and three kinds of adapter, each with the largest rank up to `--rank` that stays below 5% of the
parameters, are trained for the same number of steps on the same windows of the training split. The peak learning rate
of each and the kind of adapter are chosen by R2 on validation networks with the first seed; then all seeds are
evaluated on test networks. All use the weight tokenizer of the pretrained model, so that their R2 is comparable. The
blind test uses two zoos of `experiments/paper_zoos.py`, which were fixed beforehand.

    python benchmarks/adapt_sane.py --sane ../sane/usps_0/model --source-zoo ../sane/zoos:usps_seed_67 \
        --zoo ../sane/zoos:fashion_seed_67 \
        --steps 150 \
        --work ../sane/adapt --output runs/lora/adapt_sane_blind.json

Every run is kept in `--work`, so that an interrupted benchmark continues where it stopped. With the defaults, there
are 13 runs of 60 steps, which take about 5 minutes and 2 GB on 2 idle CPU cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import finish, new_parser, start

from hf_sane.core._adapters import adapter_size, load_adapter, match_modules
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import evaluate_reconstruction, r2_from_sums
from hf_sane.training._lora import CONTRASTIVE_HEAD, add_lora
from hf_sane.training._pretraining import pretrain
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._dataset import Zoo, ZooSplit

PATH_MAPS = ["token_in", "latent_out", "latent_in", "token_out"]
ATTENTION_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj"]
FEED_FORWARD_MAPS = ["fc_in", "fc_out"]
FULL = "full fine-tuning"
NORMS_AND_POSITIONS = ["attention_norm", "mlp_norm", "encoder_positions", "decoder_positions"]
# Modules with low-rank updates, and modules that are trained and saved in full.
KINDS: dict[str, tuple[list[str], list[str]]] = {
    "all maps": ([*ATTENTION_MAPS, *FEED_FORWARD_MAPS, *PATH_MAPS], []),
    "path maps": (PATH_MAPS, []),
    "path maps, norms, positions": (PATH_MAPS, NORMS_AND_POSITIONS),
}
LARGEST_SHARE = 0.05  # share of the parameters of encoder and decoder, without the contrastive head


@dataclass(frozen=True)
class Experiment:
    """Inputs and settings of all runs."""

    sane: str
    zoo: Zoo
    source: Zoo
    work: Path
    steps: int
    batch_size: int
    noise: float
    largest_rank: int

    def run(self, kind: str, learning_rate: float, seed: int) -> dict[str, Any]:
        """Train an adapter, or read a finished run: validation and test R2, parameters, seconds."""
        folder = self.work / f"{kind.replace(',', '').replace(' ', '_')}-{learning_rate:g}-{seed}"
        if not (folder / "model" / "run.json").is_file():
            arguments = PretrainSettings(
                zoo=[self.zoo.facts.name],
                output=str(folder),
                from_=self.sane,
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
                **self.adapter(kind),
            )
            pretrain(arguments, zoos=[self.zoo])
        record = RunRecord.load(folder / "model" / "run.json")
        model = SANEModel.from_pretrained(self.sane if kind != FULL else folder / "model")
        if kind != FULL:
            model = load_adapter(model, folder / "model")
        found = self.judge(model.eval())
        print(f"{folder.name}: validation R2 {found['validation_r2']:.4f}", flush=True)
        return found | {"seconds": record.seconds, "rank": self.adapter(kind).get("lora_rank")}

    def adapter(self, kind: str) -> dict[str, Any]:
        """Settings of a kind of adapter, with the largest allowed rank below 5% of the parameters."""
        if kind == FULL:
            return {}
        model = SANEModel.from_pretrained(self.sane)
        targets, trained = KINDS[kind]
        names = match_modules(model, targets, excluded=[CONTRASTIVE_HEAD])
        per_rank = sum(sum(model.get_submodule(name).weight.shape) for name in names)
        whole = [model.get_submodule(name) for name in match_modules(model, trained, excluded=[CONTRASTIVE_HEAD])]
        fixed = sum(parameter.numel() for module in whole for parameter in module.parameters())
        rank = min(self.largest_rank, int((LARGEST_SHARE * serving_parameters(model) - fixed) / per_rank))
        if rank < 1:
            raise ValueError(
                f"rank 1 in {kind} takes more than {LARGEST_SHARE:.0%} of the parameters; use a wider SANE"
            )
        chosen = {"lora_targets": targets, "lora_trained": trained}
        return {"lora": True, "lora_rank": rank, "lora_alpha": 2.0 * rank, **chosen}

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


def serving_parameters(model: SANEModel) -> int:
    """Number of parameters of encoder and decoder."""
    head = sum(parameter.numel() for parameter in model.projection_head.parameters())
    return sum(parameter.numel() for parameter in model.parameters()) - head


def measure(experiment: Experiment, rates: dict[str, list[float]], seeds: Sequence[int]) -> dict[str, Any]:
    """Select settings on validation networks with the first seed, then evaluate all seeds on test networks."""
    pretrained = SANEModel.from_pretrained(experiment.sane).eval()
    before = experiment.judge(pretrained)
    print(f"pretrained: validation R2 {before['validation_r2']:.4f}", flush=True)
    search: dict[str, dict[str, float]] = {}
    chosen: dict[str, tuple[float, float]] = {}  # kind to (validation R2, learning rate)
    for kind in (FULL, *KINDS):
        tried = {rate: experiment.run(kind, rate, seeds[0]) for rate in rates["full" if kind == FULL else "lora"]}
        search[kind] = {f"{rate:g}": found["validation_r2"] for rate, found in tried.items()}
        chosen[kind] = max((found["validation_r2"], rate) for rate, found in tried.items())
    adapter = max(KINDS, key=lambda kind: chosen[kind])
    runs = {kind: [experiment.run(kind, chosen[kind][1], seed) for seed in seeds] for kind in (FULL, adapter)}
    gains = {kind: [found["test_r2"] - before["test_r2"] for found in runs[kind]] for kind in runs}
    recovered = [ours / full for ours, full in zip(gains[adapter], gains[FULL], strict=True)]
    keys = ("validation_r2", "test_r2", "source_test_r2")
    methods = {"pretrained, not adapted": before}
    for kind, name in ((FULL, FULL), (adapter, f"LoRA in {adapter}")):
        methods[name] = {key: sum(found[key] for found in runs[kind]) / len(seeds) for key in keys}
    size = adapter_size(add_lora(pretrained, **_plain(experiment.adapter(adapter))))
    return {
        "methods": methods,
        "gain_recovered": sum(recovered) / len(recovered),
        "gain_recovered_by_seed": recovered,
        "adapter": {"kind": adapter, "rank": runs[adapter][0]["rank"], **size}
        | {
            "share_of_encoder_and_decoder": size["adapter_parameters"]
            / serving_parameters(SANEModel(pretrained.config))
        },
        "learning_rates": {kind: chosen[kind][1] for kind in runs},
        "validation_r2_of_the_search": search,
        "test_r2_by_seed": {kind: [found["test_r2"] for found in found_runs] for kind, found_runs in runs.items()},
        "seconds_by_seed": {kind: [found["seconds"] for found in found_runs] for kind, found_runs in runs.items()},
    }


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run as arguments of `add_lora`."""
    return {name.removeprefix("lora_"): value for name, value in settings.items() if name != "lora"}


def open_zoo(name: str) -> Zoo:
    """A zoo by folder, or `folder:config`."""
    folder, _, config = name.partition(":")
    return Zoo.load(folder, config or None)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and write the record."""
    parser = new_parser(__doc__, needs_output=True)
    parser.add_argument("--sane", required=True, help="pretrained SANE folder")
    parser.add_argument("--source-zoo", required=True, help="zoo of its pre-training: folder, or folder:config")
    parser.add_argument("--zoo", required=True, help="zoo to adapt to, of the same network shape")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--full-rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--lora-rates", type=float, nargs="+", default=[3e-3, 1e-2])
    parser.add_argument("--rank", type=int, default=32, help="largest rank of adapters")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, record = start(parser, argv, hidden=("work",))
    zoo, source = open_zoo(options.zoo), open_zoo(options.source_zoo)
    experiment = Experiment(
        options.sane, zoo, source, options.work, options.steps, options.batch_size, options.noise, options.rank
    )
    results = measure(experiment, {"full": options.full_rates, "lora": options.lora_rates}, options.seeds)
    base = RunRecord.load(Path(options.sane) / "run.json")
    networks = {
        name: {split: len(part) for split, part in z.splits.items()}
        for name, z in zip(("zoo", "source"), (zoo, source), strict=True)
    }
    names = {"zoo": zoo.facts.name, "source": source.facts.name}
    data = {"pretraining": base.command, "names": names, "networks": networks, "new_zoo": zoo.facts.arguments}
    data["split"] = "by training run, chosen on validation"
    share = results["adapter"]["share"]
    print(f"recovered {results['gain_recovered']:.1%} of the gain with {share:.1%} of the parameters")
    return finish(record, results, options.output, data=data)


if __name__ == "__main__":
    run_script(main, name="adapt_sane.py")
