"""Python without assertions (`python -O`) refuses what Python refuses."""

import subprocess
import sys

CHECKS = """
import torch
from hf_sane.core._layout import Layout
from hf_sane.symmetry._parts import Part
from hf_sane.symmetry._permutation import PermutationSpec

assert False, "this line must not count"

def refuses(call, message):
    try:
        call()
    except ValueError as error:
        if message not in str(error):
            raise SystemExit(f"expected {message!r}, got {error}")
        return
    raise SystemExit(f"accepted: {message}")

axes, sizes = {"a": ("P",)}, {"P": 6}
wrong = {"P": (Part("heads", 2), Part("rest", 4))}
refuses(lambda: PermutationSpec(axes, sizes, parts=wrong), "must be the product of differently named parts")
empty = {"P": (Part("heads", 0), Part("rest", 4))}
refuses(lambda: PermutationSpec(axes, sizes, parts=empty), "must have at least one entry")
inside = {"P": (Part("heads", 2, within=("heads",)), Part("rest", 3))}
refuses(lambda: PermutationSpec(axes, sizes, parts=inside), "lies within other parts")
layout = Layout.from_state_dict({"w": torch.zeros(2, 3)}, token_dim=3).to_dict()
refuses(lambda: Layout.from_dict({**layout, "token_dim": 0}), "expected a whole number from 1")
"""


def test_checks_of_what_comes_from_outside_are_no_assertions():
    ran = subprocess.run([sys.executable, "-O", "-c", CHECKS], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
