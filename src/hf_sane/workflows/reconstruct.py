"""Reconstruct the test networks of zoos, and measure how much of their weights and accuracy a SANE preserves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_sane.networks._images import ImageData
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.training._evaluation import r2_from_sums, reconstruction_sums
from hf_sane.workflows.networks import open_images
from hf_sane.workflows.results import Result, Table, rows_of
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.show_zoo import load_zoo
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo


@dataclass(kw_only=True)
class ReconstructionResult(Result):
    """R2 over all test networks, and for each zoo R2 and the accuracies before and after."""

    def tables(self) -> list[Table]:
        """One row per zoo."""
        rows = rows_of(self.record.results["reconstruction"])
        caption = f"R2 of all test networks: {self.record.results['reconstruction_r2']:.4g}"
        header = ("zoo", "R2", "accuracy before", "accuracy after", "accuracy kept", "networks")
        return [Table(header, rows, caption=caption)]


def reconstruct(
    zoos: Mapping[str, str | Path | Zoo], sane: str | Path | SANE, images: str | ImageData, **windows: Any
) -> ReconstructionResult:
    """Encode and decode the test networks of zoos; measure R2 of all checkpoints and accuracy of the final ones.

    Args:
        zoos: Aligned zoos of one architecture each, or their folders or Hub dataset ids, by name.
        sane: A SANE, its folder or its Hub repo id.
        images: Images to test the networks on, or a source for `load_images`.
        **windows: `window_size` and `halo_size`, see [`NetworkCodec`].
    """
    sane, data = open_sane(sane), open_images(images)
    record = RunRecord.start(arguments={"sane": sane.source, "zoos": list(zoos), **windows})
    total = torch.zeros(4, dtype=torch.float64)
    parts = {}
    for name, source in zoos.items():
        test = load_zoo(source).splits["test"]
        final = test.final_epochs()
        layout, config = final.layout_and_config()
        codec = NetworkCodec(sane.model, sane.extractor, layout, config, **windows)
        raw = aligned_tokens(test)
        decoded = sane.model.decode_sequences(codec.encode(raw), layout.positions, **windows)
        sums = reconstruction_sums(sane.extractor.normalize(raw, layout), decoded, layout.weight_mask)
        total += sums
        raw = aligned_tokens(final)
        before = codec.networks(raw).evaluate(*data.split("test"))[1].mean().item()
        after = codec.decode(codec.encode(raw)).evaluate(*data.split("test"))[1].mean().item()
        parts[name] = {
            "r2": r2_from_sums(sums),
            "accuracy_original": before,
            "accuracy_reconstructed": after,
            "accuracy_kept": after / before if before else math.nan,
            "networks": len(raw),
        }
    record.finish(
        {"reconstruction_r2": r2_from_sums(total), "reconstruction": parts}, data={"images": data.describe()}
    )
    return ReconstructionResult(record=record)


__all__ = ["ReconstructionResult", "reconstruct"]
