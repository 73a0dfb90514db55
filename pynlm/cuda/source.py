"""Read a .cu file: its text with what it includes, and the kernels that it defines."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
_KERNEL = re.compile(r"^NLM_KERNEL\((\w+), (\d+),([^)]*)\)", re.MULTILINE)
# Headers that only the emulation reads.
_NOT_FOR_NVRTC = "common/emulated.h"


@dataclass(frozen=True)
class Parameter:
    """Name and C type ("REAL", "int64_t", ...) of a kernel's parameter; pointers are to arrays."""

    name: str
    type: str
    pointer: bool
    const: bool


@dataclass(frozen=True)
class Kernel:
    """What `NLM_KERNEL(name, threads, parameters)` says.

    Attributes
    ----------
    late
        Parameters x that have an x_at: numbers that may stand on the device (`late` of cuda.h).
    """

    name: str
    threads: int
    parameters: tuple[Parameter, ...]
    late: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A .cu file, whole."""

    path: str
    text: str
    kernels: dict[str, Kernel]


def root() -> Path:
    """The folder of the sources: installed beside the package, or csrc/ of a checkout."""
    installed = Path(str(resources.files("pynlm"))) / "_csrc"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "csrc"


@functools.cache
def read(path: str) -> Source:
    """Read `path` ("dropout/dropout.cu"), each header put where it is first included.

    CuPy's cache knows a module by its text alone, so what is included must be part of it.

    Raises
    ------
    ValueError
        A kernel whose parameters cannot be read.
    """
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen or name == _NOT_FOR_NVRTC:
            return ""
        seen.add(name)
        text = (root() / name).read_text(encoding="utf-8")
        text = text.replace("#pragma once\n", "\n")
        return _INCLUDE.sub(lambda found: expand(found[1]), text)

    text = expand(path)
    kernels = {}
    for name, threads, inside in _KERNEL.findall(text):
        parameters = tuple(_parameter(path, name, part) for part in inside.split(","))
        names = {p.name for p in parameters}
        late = tuple(p.name for p in parameters if f"{p.name}_at" in names)
        kernels[name] = Kernel(name, int(threads), parameters, late)
    return Source(path, text, kernels)


def _parameter(path: str, kernel: str, text: str) -> Parameter:
    words = re.fullmatch(r"\s*(const )?(\w+)(\*)? (\w+)\s*", text)
    if words is None:
        raise ValueError(f"{path}: cannot read a parameter of {kernel}: {text.strip()!r}")
    const, type_, pointer, name = words.groups()
    return Parameter(name, type_, pointer is not None, const is not None)
