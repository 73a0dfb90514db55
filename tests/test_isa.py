"""Instruction-set levels: the right one is chosen, a wrong name is refused, nothing leaks."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pynlm import _kernels

REPOSITORY = Path(__file__).parent.parent
# What the Linux kernel calls the features that each level was compiled for.
FEATURES = {
    "scalar": set(),
    "neon": set(),
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def in_new_process(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter with PYNLM_ISA=isa."""
    environment = os.environ | {"PYNLM_ISA": isa}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_level_in_use_is_available() -> None:
    assert _kernels.isa_name() in _kernels.available_isas()
    assert _kernels.available_isas()[-1] == "scalar"


@pytest.mark.parametrize("isa", _kernels.available_isas())
def test_environment_forces_level(isa: str) -> None:
    ran = in_new_process(isa, "import pynlm._kernels as k; print(k.isa_name())")
    assert (ran.stdout.strip(), ran.stderr) == (isa, "")


def test_best_level_is_the_default() -> None:
    ran = in_new_process("", "import pynlm._kernels as k; print(k.isa_name())")
    assert ran.stdout.strip() == _kernels.available_isas()[0]


def test_unknown_level_is_refused() -> None:
    ran = in_new_process("avx9", "import pynlm._kernels")
    assert ran.returncode != 0
    valid = ", ".join(_kernels.available_isas())
    assert f"PYNLM_ISA must be one of {valid} on this machine, got 'avx9'" in ran.stderr


def test_detection_agrees_with_the_operating_system() -> None:
    """A level counts as available exactly when /proc/cpuinfo lists its features."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    flags = next((set(ln.split()) for ln in text.splitlines() if ln.startswith("flags")), set())
    available = _kernels.available_isas()
    if flags:
        wide = [isa for isa in ("avx512", "avx2") if FEATURES[isa] <= flags]
        assert available == [*wide, "scalar"]
    else:  # not Linux on x86-64: the levels there need no feature that a CPU may lack
        assert not any(FEATURES[isa] for isa in available)


def test_kernel_objects_define_only_the_table() -> None:
    """The ODR rule: no weak or global code leaves an object compiled with wide instructions.

    The linker keeps one copy of a weak function for the whole library; were it the one of the
    AVX-512 object, older CPUs would stop at it.
    """
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-*"
    builds = sorted((REPOSITORY / "build").glob(tag), key=lambda path: path.stat().st_mtime)
    assert builds, f"no build/{tag}: run `make build`, which keeps the objects there"
    objects = list(builds[-1].glob("CMakeFiles/nlm_kernels_*.dir/**/*.o"))
    assert len(objects) >= len(_kernels.available_isas())
    nm = sysconfig.get_config_var("NM") or "nm"
    for path in objects:
        isa = (
            path.relative_to(builds[-1]).parts[1].removeprefix("nlm_kernels_").removesuffix(".dir")
        )
        command = [*nm.split(), "-C", "--defined-only", "--extern-only", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = [line.split(maxsplit=2)[-1] for line in listing.splitlines()]
        names = [name for name in names if not name.startswith("DW.ref.")]  # data of the unwinder
        assert names == [f"nlm::{isa}::table"], f"{path.name} of {isa}"
