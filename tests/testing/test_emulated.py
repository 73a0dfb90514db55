"""The emulation of CUDA finds what it says it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.cuda.source import read
from pynlm.testing.emulated import EmulatedDevice


def run(folder: Path, body: str, *, blocks: int = 1, **options: Any) -> Any:
    """Run a kernel of two warps on an array of 64 blocks * threads; return the array."""
    source = folder / "probe.cu"
    source.write_text(
        '#include "common/cuda.h"\n'
        "NLM_KERNEL(probe, 64, REAL* y, uint32_t* count, int n) {\n"
        "    const int i = int(threadIdx.x);\n"
        f"    {body}\n"
        "    (void)i, (void)y, (void)count, (void)n;\n}\n"
    )
    read.cache_clear()
    y, count = np.zeros(64 * blocks, np.float32), np.zeros(1, np.uint32)
    EmulatedDevice(processors=4).launch(
        str(source), "probe", blocks, y=y, count=count, n=64, **{"shared": 64 * 4, **options}
    )
    return y


def test_threads_and_blocks_are_numbered(tmp_path: Path) -> None:
    y = run(tmp_path, "y[grid_thread()] = REAL(1000 * int(blockIdx.x) + i);", blocks=3)
    assert y.tolist() == [1000 * b + i for b in range(3) for i in range(64)]


def test_sums_of_warps_and_blocks(tmp_path: Path) -> None:
    y = run(tmp_path, "y[i] = i < 32 ? warp_sum(REAL(i)) : warp_max(REAL(i));")
    assert y.tolist() == [496.0] * 32 + [63.0] * 32
    assert run(tmp_path, "y[i] = block_sum(REAL(i), nlm_shared<REAL>());").tolist() == [2016.0] * 64


def test_shuffles(tmp_path: Path) -> None:
    y = run(
        tmp_path,
        "y[i] = REAL(__shfl_sync(kAllLanes, i, 3) * 10000 + __shfl_down_sync(kAllLanes, i, 1) * 100"
        " + __shfl_up_sync(kAllLanes, i, 1));",
    )
    down = [min(i + 1, 31) for i in range(32)]
    assert y[:32].tolist() == [30000 + 100 * down[i] + max(i - 1, 0) for i in range(32)]
    votes = run(tmp_path, "y[i] = REAL(__ballot_sync(kAllLanes, i % 32 < 4) == 15u);")
    assert votes.all()


EXCHANGE = "REAL* s = nlm_shared<REAL>(); s[i] = REAL(i); {} y[i] = s[63 - i];"


def test_a_missing_barrier_shows(tmp_path: Path) -> None:
    """Shared memory begins as NaN, and threads run in random order."""
    whole = run(tmp_path, EXCHANGE.format("__syncthreads();"))
    assert whole.tolist() == list(range(63, -1, -1))
    assert np.isnan(run(tmp_path, EXCHANGE.format("")).astype(float)).any()


def test_a_grid_barrier_orders_blocks(tmp_path: Path) -> None:
    body = (
        "y[grid_thread()] = REAL(blockIdx.x + 1); grid_barrier(count, gridDim.x, 1);"
        "const REAL other = y[(gridDim.x - 1 - blockIdx.x) * 64 + i];"
        "grid_barrier(count, gridDim.x, 2); y[grid_thread()] = other;"
    )
    y = run(tmp_path, body, blocks=4, cooperative=True)
    assert y[::64].tolist() == [4.0, 3.0, 2.0, 1.0]
    with pytest.raises(RuntimeError, match="is the launch cooperative"):
        run(tmp_path, body, blocks=4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (i < 40) __syncthreads();\ny[i] = 1;", "a block's barrier at line 4 that not all"),
        ("if (i < 40) __syncthreads();\nelse __syncthreads();", "diverges: lines 4 and 5"),
        ("if (i < 40) return;\n__syncthreads();", "a block's barrier at line 5 that not all"),
        ("if (i < 40) y[i] = warp_sum(REAL(i));", "a warp operation at line [0-9]+ that not all"),
        ("y[i] = __shfl_sync(0xFFFFu, y[i], 0);", "lacks lanes"),
        ("while (*count == 0) nlm_pause();", "wait without end"),
        (
            "if (i < 32) __syncthreads(); else while (*count == 0) nlm_pause();",
            "wait without end",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"probe: .*({message})"):
        run(tmp_path, body)
    # and the next launch is not disturbed
    assert run(tmp_path, "y[i] = REAL(n);").tolist() == [64.0] * 64


def test_launches_are_checked(tmp_path: Path) -> None:
    source = tmp_path / "probe.cu"
    source.write_text(
        '#include "common/cuda.h"\nNLM_KERNEL(probe, 32, REAL* y, int n) { *y = n; }\n'
    )
    device = EmulatedDevice(processors=2, shared_limit=1024)
    y = np.zeros(1, np.float32)

    def launch(**given: Any) -> None:
        device.launch(str(source), "probe", given.pop("blocks", 1), **{"y": y, "n": 3, **given})

    launch()
    assert y.tolist() == [3.0]
    with pytest.raises(TypeError, match="probe: y must be contiguous float64, got float32"):
        launch(real=np.float64)
    with pytest.raises(TypeError, match="probe: y must be contiguous float32"):
        launch(y=np.zeros((2, 2), np.float32).T)
    with pytest.raises(TypeError, match=r"probe: no parameters \['m'\]"):
        launch(m=1)
    with pytest.raises(TypeError, match="probe: parameter n is missing"):
        device.launch(str(source), "probe", 1, y=y)
    with pytest.raises(ValueError, match=r"probe: \(3, 1\) blocks cannot be on 2 processors"):
        launch(blocks=3, cooperative=True)
    with pytest.raises(ValueError, match="probe: 1025 bytes of shared memory, limit 1024"):
        launch(shared=1025)


def test_sources_are_read_whole() -> None:
    """Every header once; parameters as they are written."""
    source = read("dropout/dropout.cu")
    assert "#include" not in source.text
    assert source.text.count("struct PhiloxWords {") == 1
    kernel = source.kernels["dropout"]
    assert kernel.threads == 256
    first = kernel.parameters[0]
    assert (first.name, first.type, first.pointer, first.const) == ("y", "REAL", True, False)
    assert kernel.parameters[1].const
