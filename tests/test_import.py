"""``import pynlm`` is cheap, and its public names are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pynlm

HEAVY = {
    "cupy",
    "jax",
    "matplotlib",
    "onnx",
    "pooch",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "typer",
}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``code``."""
    program = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    return {name.partition(".")[0] for name in out.split()}


def test_import_loads_nothing_heavy() -> None:
    loaded = modules_after("import pynlm")
    outside = {name for name in loaded if name not in sys.stdlib_module_names}
    assert outside <= {"pynlm", "numpy"}


def test_models_need_only_numpy_and_the_kernels() -> None:
    loaded = modules_after("import pynlm; pynlm.LanguageModel; import pynlm.models, pynlm.onnx")
    assert not loaded & HEAVY


def test_public_names() -> None:
    assert set(pynlm.__all__) <= set(dir(pynlm))
    for name in pynlm.__all__:
        assert getattr(pynlm, name) is not None
    assert pynlm.get_num_threads() >= 1
    with pytest.raises(AttributeError, match="module 'pynlm' has no attribute 'nonsense'"):
        _ = pynlm.nonsense  # type: ignore[attr-defined]


def test_typed() -> None:
    assert (Path(pynlm.__file__).parent / "py.typed").is_file()
