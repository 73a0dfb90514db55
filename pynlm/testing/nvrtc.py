"""Compile CUDA kernels without a GPU, and read what resources they take.

Needs NVRTC, which the wheel nvidia-cuda-nvrtc-cu12 carries (extra `cuda-check`); neither CuPy nor a
driver is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from pynlm.cuda.device import COMPILER_OPTIONS
from pynlm.cuda.source import read

_ENTRY = re.compile(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", re.S)


@dataclass(frozen=True)
class Resources:
    """What a thread of a kernel takes.

    Parameters
    ----------
    registers
        32-bit registers.
    spilled
        Bytes that did not find a register, stored and loaded.
    stack
        Bytes of local memory: arrays that are indexed at run time, and spills.
    """

    registers: int
    spilled: int
    stack: int


def is_installed() -> bool:
    """Whether NVRTC can be loaded."""
    return _path() is not None


def compile_kernels(path: str, arch: str, macros: tuple[str, ...] = ()) -> dict[str, Resources]:
    """Compile a .cu file of csrc/ to machine code.

    Parameters
    ----------
    path
        "recurrent/lstm.cu".
    arch
        "sm_90".
    macros
        "REAL=float" and others.

    Returns
    -------
    dict
        Resources of each kernel by name.

    Raises
    ------
    RuntimeError
        The source does not compile; the message is the compiler's.
    """
    nvrtc = _library()
    program = ctypes.c_void_p()
    source = read(path)
    text = source.text.encode()
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, path.encode(), 0, None, None)
    if code:
        raise RuntimeError(f"{path}: nvrtcCreateProgram returned {code}")
    # -ftz: CuPy adds it, and nothing that a caller gives takes it back
    options = [*COMPILER_OPTIONS, "-ftz=true", f"-arch={arch}", "--ptxas-options=-v"]
    options.append("-diag-suppress=177")
    options += [f"-D{macro}" for macro in macros]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    said = log.value.decode()
    if failed or "warning" in said:
        raise RuntimeError(f"{path} for {arch} with {', '.join(macros)}:\n{said}")
    found = {name: _resources(part) for name, part in _ENTRY.findall(said)}
    if set(found) != set(source.kernels):
        raise RuntimeError(f"{path}: compiled {sorted(found)}, expected {sorted(source.kernels)}")
    return found


def _resources(log: str) -> Resources:
    stack, stores, loads = (
        int(_number(rf"(\d+) bytes {what}", log))
        for what in ("stack frame", "spill stores", "spill loads")
    )
    return Resources(int(_number(r"Used (\d+) registers", log)), stores + loads, stack)


def _number(pattern: str, log: str) -> str:
    found = re.search(pattern, log)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in what ptxas said:\n{log}")
    return found[1]


@functools.cache
def _path() -> Path | None:
    spec = util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or []:
        for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return library
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    path = _path()
    if path is None:
        raise RuntimeError("NVRTC is not installed: pip install 'pynlm[cuda-check]'")
    return ctypes.CDLL(str(path))
