"""Every CUDA kernel compiles for real cards, without spilling registers. Needs no card."""

from __future__ import annotations

import os

import pytest

from pynlm.cuda.source import read, root
from pynlm.testing import nvrtc

# Others by `make cuda-check`.
ARCHITECTURES = os.environ.get("PYNLM_CUDA_ARCHITECTURES", "sm_80 sm_90").split()
SOURCES = sorted(str(path.relative_to(root())) for path in root().rglob("*.cu"))

# A multiprocessor has so many registers.
REGISTERS = 65536
# Registers of a thread, where a kernel may take more than these.
USUAL_REGISTERS = 80
MORE_REGISTERS = {"adam_update_rows": 96}

needs_nvrtc = pytest.mark.skipif(not nvrtc.is_installed(), reason="NVRTC is not installed")


@needs_nvrtc
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("path", SOURCES)
def test_kernels_compile_and_fit(path: str, arch: str, real: str) -> None:
    for name, taken in nvrtc.compile_kernels(path, arch, (f"REAL={real}",)).items():
        assert taken.spilled == 0, f"{name} spills {taken.spilled} bytes"
        assert taken.stack == 0, f"{name} has {taken.stack} bytes of local memory"
        limit = MORE_REGISTERS.get(name, USUAL_REGISTERS)
        assert taken.registers <= limit, f"{name} takes {taken.registers} registers"
        assert limit * read(path).kernels[name].threads <= REGISTERS


@needs_nvrtc
def test_what_does_not_compile_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    wrong = tmp_path / "wrong.cu"
    wrong.write_text('#include "common/cuda.h"\nNLM_KERNEL(wrong, 32, REAL* y) { *y = nothing; }\n')
    with pytest.raises(RuntimeError, match=r"(?s)wrong\.cu for sm_90.*nothing"):
        nvrtc.compile_kernels(str(wrong), "sm_90", ("REAL=float",))
