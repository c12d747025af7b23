"""What a comparison says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from kdlite.lite.output_report import compare
from kdlite.lite.verification import KernelRun, VerificationReport

WANTED = np.arange(6.0).reshape(3, 2)
IN_STEPS = compare("steps", WANTED + 0.5, WANTED, step=0.25)
IN_FLOAT = compare("float", WANTED + 3.0, WANTED)
EQUAL = compare("equal", WANTED, WANTED, step=0.25)


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ([IN_STEPS], "2 steps (0.00% within one)"),
        ([EQUAL], "0 steps (100.00% within one)"),
        # The largest difference, and the smallest share.
        ([IN_STEPS, EQUAL], "2 steps (0.00% within one)"),
        ([IN_FLOAT], "3"),
        # Values are no steps, however far apart.
        ([IN_STEPS, IN_FLOAT], "2 steps (0.00% within one) and 3"),
        ([IN_FLOAT, EQUAL], "0 steps (100.00% within one) and 3"),
    ],
)
def test_other_kernels_are_told_in_the_units_of_each_output(outputs, told) -> None:
    run = KernelRun("built-in", 1, 3, tuple(outputs))
    report = VerificationReport("m", 9, 3, tuple(outputs), (), "int8", (run, run))
    last = str(report).splitlines()[-1]
    of_run = f"built-in kernels and 1 thread {told}"
    assert last == f"at most apart with {of_run}, {of_run}"
