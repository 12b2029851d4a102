"""Create the SANE and the anchors of `hf-sane start`: CNNs for colour images of 32 x 32 pixels.

    python experiments/small_images.py --images ../shared/data/images/cifar10_jpeg.npz --work ../small_images \
        --output src/hf_sane/pretrained/small_images

A zoo of 24 CNNs is trained on 4,000 images, and the autoencoder on four checkpoints of 19 of them; the best ten of
these are the anchors. It takes about twelve minutes on one core. Stages with results in `--work` are not repeated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from script_options import ScriptParser

import hf_sane
from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.hub._publish import save_sane
from hf_sane.networks._images import load_zoo_images
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._redaction import hide_folders, hide_folders_in
from hf_sane.sampling._anchors import choose_anchors
from hf_sane.workflows.align_zoo import align_zoo
from hf_sane.workflows.reconstruct import reconstruct
from hf_sane.zoo._dataset import Zoo

TITLE = "SANE for small images"
ANCHORS = 10
ZOO: dict[str, Any] = {
    "name": "cifar10",
    "train_limit": 4000,
    "validation_limit": 1000,
    "test_limit": 1000,
    "architecture": "cnn_l",
    "num_models": 24,
    "epochs": 6,
    "keep_epochs": [2, 4, 5, 6],
    "learning_rate": 4e-3,
    "schedule": "one_cycle",
    "split_shares": [0.8, 0.1, 0.1],
    "token_dim": 73,  # a quarter of the longest row
    "seed": 0,
}
MODEL: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 3, "latent_dim": 64, "latent_noise": 0.1}
PRETRAINING: dict[str, Any] = {
    "epochs": 75,
    "batch_size": 19,
    "eval_every_epochs": 0,
    "log_with": "none",
    "seed": 0,
}


def build(images: Path, work: Path) -> Zoo:
    """The zoo, aligned."""
    folder = work / "zoo"
    zoo = Zoo.load(folder) if folder.is_dir() else hf_sane.build_zoo(str(images), output=folder, **ZOO)
    return zoo if zoo.alignment is not None else align_zoo(zoo)


def pretrain(zoo: Zoo, work: Path) -> hf_sane.SANE:
    """The autoencoder; windows hold whole networks."""
    folder = work / "run"
    if (folder / "model").is_dir():
        return hf_sane.SANE.from_pretrained(folder / "model")
    layout = zoo.splits["train"].layout(0)
    model = MODEL | {"window_size": layout.num_tokens, "max_positions": layout.max_positions}
    return hf_sane.pretrain(zoo, output=folder, model=model, **PRETRAINING)


def card_options(network_config: ZooConfig | None) -> dict[str, Any]:
    """Title, licence and example of the card."""
    return {"title": TITLE, "license_id": "mit", "network_config": network_config}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, run the missing stages, and save the autoencoder with its anchors."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="file cifar10_jpeg.npz")
    parser.add_argument("--work", type=Path, required=True, help="folder of the zoo and of the pre-training run")
    parser.add_argument("--output", type=Path, required=True, help="folder of the autoencoder and its anchors")
    options = parser.parse_args(argv)
    tune_allocator()
    zoo = build(options.images, options.work)
    sane = pretrain(zoo, options.work)
    measured = reconstruct({zoo.facts.name: zoo}, sane, load_zoo_images(zoo.facts, path=options.images)).to_dict()
    train = zoo.splits["train"]
    anchors = train.select(choose_anchors(train, num_anchors=ANCHORS, top_fraction=0.6))
    assert sane.record is not None
    chosen = dict(zip(anchors.run_ids, anchors.column("test_accuracy").tolist(), strict=True))
    record = sane.record
    record.command = hide_folders(record.command)
    record.arguments, record.data = hide_folders_in(record.arguments), hide_folders_in(record.data)
    record.results |= measured | {"anchors": chosen}
    networks = [anchors.model(index) for index in range(len(anchors))]
    card = card_options(train.known_config(0))
    save_sane(options.output, sane.model, sane.extractor, record, anchors=networks, **card)
    print(f"wrote {options.output}: {measured}")


if __name__ == "__main__":
    run_script(main, name="small_images.py")
