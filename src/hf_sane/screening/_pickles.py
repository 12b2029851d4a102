"""Find the code that a pickle would run if opened, with picklescan, which reads opcodes without running them."""

import logging
from importlib.util import find_spec
from pathlib import Path

from hf_sane.records._errors import name_some
from hf_sane.screening._findings import Finding
from hf_sane.screening._other_formats import INSTALL
from hf_sane.tokenization._formats import TORCHSCRIPT, file_format


def scan_pickle(path: Path) -> list[Finding]:
    """Findings about code in a PyTorch file or a plain pickle; empty for other formats."""
    found = file_format(path)
    if found.reader != "pickle" and found != TORCHSCRIPT and "pickle" not in found.name:
        return []
    advice = "save the tensors as safetensors (safetensors.torch.save_file)"
    if find_spec("picklescan") is None:
        message = "a pickle, whose opcodes were not scanned, since picklescan is not installed"
        return [Finding("pickle", "warning", message, f"{INSTALL}; {advice}")]
    from picklescan.scanner import SafetyLevel, scan_file_path

    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # since it also logs its results
    result = scan_file_path(str(path))
    calls = sorted({f"{x.module}.{x.name}" for x in result.globals if x.safety == SafetyLevel.Dangerous})
    if calls:
        message = f"opening it would run {name_some(calls)}"
        return [Finding("pickle", "error", message, "do not open it without weights_only=True; inform its author")]
    unknown = sorted({f"{x.module}.{x.name}" for x in result.globals if x.safety == SafetyLevel.Suspicious})
    what = f", which imports {name_some(unknown)}" if unknown else ""
    damaged = "; parts of it could not be scanned" if result.scan_err else ""
    return [Finding("pickle", "warning", f"a pickle{what}{damaged}", advice)]
