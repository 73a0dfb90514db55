"""CUDA kernels beside cuDNN: the page from made-up figures. The rest needs a card."""

from __future__ import annotations

import pytest

from bench import gpu

SECONDS = {"pynlm": 0.002, "forward": 0.001, "torch": 0.003}
ERRORS = {"pynlm": {"dw_hh": 1e-6}, "torch": {"dw_hh": 2e-6}}
LIMITS = {"float32": 5e13, "tf32": 4e14, "bf16": 8e14, "copy": 4e12}


def test_page() -> None:
    facts = {"GPU": "Some GPU"}
    cells = [
        {"cell": cell, "case": str(shape), "precision": precision, "seconds": SECONDS,
         "errors": ERRORS, "steps": shape.T, "flops": 1e10}
        for cell in gpu.CELLS for shape in gpu.SHAPES for precision in gpu.PRECISIONS
    ]  # fmt: skip
    heads = [
        {"case": case.name, "precision": precision, "seconds": SECONDS, "flops": 1e10}
        for case in gpu.SOFTMAXES
        for precision in gpu.PRECISIONS
    ]
    seconds = {"alone": 0.003, "lanes": 0.004, "counted": 0.002}
    pairs = [
        {
            "kind": kind,
            "case": str(shape),
            "precision": "tf32",
            "choice": [2, 4],
            "seconds": seconds,
        }
        for kind in gpu.KINDS
        for shape in gpu.LANES
    ]
    steps = [
        {"case": name, "precision": precision, "seconds": {"queued": 0.003, "graph": 0.002},
         "tokens": 700}
        for name in gpu.RECIPES for precision in gpu.PRECISIONS
    ]  # fmt: skip
    text = gpu.render(facts, LIMITS, cells, heads, pairs, steps)
    assert "| 3.00 ms | 4.00 ms | 2.00 ms | 2 lanes, 4 chunks | 1.50× |" in text
    assert "| GPU | Some GPU |" in text
    assert "Geometric mean 1.50×, least 1.50×" in text
    assert "| zaremba-large | tf32 | 3.00 ms | 2.00 ms | 1.50× | 350,000 |" in text
    assert "| 700,650,10000 | bf16 | 2.00 ms | 1 % | 1.50× |" in text


@pytest.mark.parametrize("precision", gpu.PRECISIONS)
@pytest.mark.parametrize("kernel", [*gpu.CELLS, "xent"])
def test_every_result_has_a_tolerance_that_can_fail(kernel: str, precision: str) -> None:
    widest = max(shape.I + shape.H for shape in gpu.SHAPES)
    assert gpu.tolerance(kernel, precision).bound(1.0, 1.0, widest) < 0.5
