"""docs/results/performance.md: one column per kind of processor; missed and unmeasured targets are named."""

import json
import shutil
from pathlib import Path

from results import performance

ROOT = Path(__file__).parents[2]


def test_a_second_kind_of_processor_has_a_column_of_its_own(tmp_path):
    other = tmp_path / "benchmarks" / "avx2"
    other.mkdir(parents=True)
    for record in (ROOT / "runs" / "benchmarks").glob("*.json"):
        shutil.copy(record, tmp_path / "benchmarks")
    record = json.loads((ROOT / "runs/benchmarks/pretraining_step.json").read_text())
    record["hardware"]["cpu"] = "Other Processor"
    results = record["results"]
    results |= {"cpu_capability": "AVX2", "left_out": {"ours_bf16": "emulated"}}
    results["ratios"] |= {"ours_fp32_share_of_products": 0.9, "bf16_product_over_fp32_product": 0.01}
    del results["ratios"]["ours_bf16_over_plain"]
    (other / "pretraining_step.json").write_text(json.dumps(record))
    text = performance.performance_block(tmp_path / "benchmarks")
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert rows["| benchmark"][2:] == ["AVX512", "AVX2 |"]
    share = rows[
        "| pre-training step in fp32 (width 512, 6 + 6 layers): share of the measured rate of matrix products"
    ]
    link = "(../../runs/benchmarks/pretraining_step.json)"
    assert share[2:] == [f"[78%]{link} **(not reached)**", f"[90%]{link.replace('pre', 'avx2/pre')} |"]
    bf16 = rows["| pre-training step in bf16: tokens per second, relative to a plain fp32 version of the paper's loop"]
    assert bf16[3] == f"[left out]{link.replace('pre', 'avx2/pre')} |"
    assert rows["| aligning a ResNet-18"][1:] == [
        "none",
        "[2.74 s](../../runs/benchmarks/alignment.json)",
        "not measured |",
    ]
    assert "AVX2: Other Processor, 2 cores, bf16 products at 0.01 x" in text
    (tmp_path / "benchmarks" / "zoo_import.json").unlink()
    text = performance.performance_block(tmp_path / "benchmarks")
    assert "of resident memory" not in text
    imports = json.loads((ROOT / "runs/benchmarks/avx2/zoo_import.json").read_text()) | {"peak_rss_bytes": 1.5e9}
    (other / "zoo_import.json").write_text(json.dumps(imports))
    text = performance.performance_block(tmp_path / "benchmarks")
    assert "benchmark of imports peaks at 1.50 GB of resident memory" in text
    imports["results"].pop("peak_resident_bytes", None)  # records from before it was measured
    (other / "zoo_import.json").write_text(json.dumps(imports))
    rows = performance.performance_block(tmp_path / "benchmarks").splitlines()
    (row,) = [row for row in rows if "peak resident memory of the process" in row]
    assert row.endswith("not measured |")
