"""Every CUDA kernel compiles for real cards, without spilling registers. Needs no card."""

from __future__ import annotations

import os

import pytest

from pynlm.cuda.forms import forms_of
from pynlm.cuda.source import read, root
from pynlm.testing import nvrtc

# Others by `make cuda-check`.
ARCHITECTURES = os.environ.get("PYNLM_CUDA_ARCHITECTURES", "sm_80 sm_90").split()
SOURCES = sorted(str(path.relative_to(root())) for path in root().rglob("*.cu"))


def forms(path: str) -> list[tuple[str, ...]]:
    """Macros that a source is compiled with."""
    text = read(path).text
    found: list[tuple[str, ...]] = [("REAL=float",), ("REAL=double",)]
    if "TILE_ROWS" in text:  # products of recurrent kernels, each with its largest tile
        found = [
            ("REAL=float", "TILE_ROWS=10", "TILE_FOURS=2"),
            ("REAL=double", "TILE_ROWS=8", "TILE_FOURS=1"),
        ]
        found.append(("REAL=float", "TILE_ROWS=32", "TF32=1"))
        if "GATES" not in text:
            found += [("REAL=float", "TILE_ROWS=32", f"{math}=1") for math in ("BF16", "FP16")]
        if "PYNLM_CUDA_ARCHITECTURES" in os.environ and "GATES" not in text:
            found.append(("REAL=float", "TILE_ROWS=10", "TILE_FOURS=1"))
    plain = any(p.name == "parts" for k in read(path).kernels.values() for p in k.parameters)
    if plain:  # most weights in registers
        found = found if "PYNLM_CUDA_ARCHITECTURES" in os.environ else []
        for real, math, itemsize in (
            ("double", "float32", 8), ("float", "float32", 4), ("float", "tf32", 4),
            ("float", "bf16", 4),
        ):  # fmt: skip
            for form in forms_of(math, itemsize):
                most = (f"TILE_ROWS={max(form.tile_rows)}", f"HELD={max(form.held)}")
                found.append((f"REAL={real}", *most, *form.defines))
    if "ROW_WARPS" in text and "static_assert(kRowWarps == 8" not in text:  # of few words
        found += [(*form, "ROW_WARPS=1") for form in found]
    if "GATES" in text:
        gates = ("GATES=4", "GATES=3", "GATES=4")
        found = [(*form, own) for form, own in zip(found, gates, strict=True)]
    return found


FORMS = [
    pytest.param(path, form, id="-".join((path, *form))) for path in SOURCES for form in forms(path)
]

# A multiprocessor has so many registers.
REGISTERS = 65536
# Registers of a thread, where a kernel may take more than these.
USUAL_REGISTERS = 80
ALL_REGISTERS = 255  # one block on a multiprocessor
MORE_REGISTERS = {
    "adam_update_rows": 96,
    # in float64
    "candidates_losses": 96,
    "hsoftmax_paths": 168,
    "normalise_rows_backward": 144,
    "sum_sorted": 112,
    "xent_entropy": 88,
    "xent_top_k": 128,
}

needs_nvrtc = pytest.mark.skipif(not nvrtc.is_installed(), reason="NVRTC is not installed")


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("path", "form"), FORMS)
def test_kernels_compile_and_fit(path: str, form: tuple[str, ...], arch: str) -> None:
    for name, taken in nvrtc.compile_kernels(path, arch, form).items():
        assert taken.spilled == 0, f"{name} spills {taken.spilled} bytes"
        assert taken.stack == 0, f"{name} has {taken.stack} bytes of local memory"
        limit = MORE_REGISTERS.get(name, USUAL_REGISTERS)
        if any(macro.startswith("TILE_ROWS") for macro in form):
            limit = ALL_REGISTERS
        assert taken.registers <= limit, f"{name} takes {taken.registers} registers"
        assert limit * read(path).kernels[name].threads <= REGISTERS


@needs_nvrtc
def test_what_does_not_compile_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    wrong = tmp_path / "wrong.cu"
    wrong.write_text('#include "common/cuda.h"\nNLM_KERNEL(wrong, 32, REAL* y) { *y = nothing; }\n')
    with pytest.raises(RuntimeError, match=r"(?s)wrong\.cu for sm_90.*nothing"):
        nvrtc.compile_kernels(str(wrong), "sm_90", ("REAL=float",))
