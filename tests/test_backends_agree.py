"""Every backend has the same kernel functions with the same parameters, and guards its memory."""

from __future__ import annotations

import ast
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm import _kernels, cuda, kernels, reference
from pynlm.kernels import Variant, _backend
from pynlm.testing import FUNCTIONS, Case, arguments
from pynlm.testing.device_arrays import Cupy, DeviceArray
from pynlm.testing.emulated import StrictDevice, emulation

# Public, but about the compiled backend itself.
ABOUT_CPU = {"get_num_threads", "set_num_threads", "pack"}


def public(module: Any) -> set[str]:
    return {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}


def ordinary(function: str) -> Case:
    """One with all arrays of an ordinary call."""
    names = ("primes", "rows-plain", "size-13")
    return next(c for c in FUNCTIONS[function].cases if c.name.startswith(names))


def compiled_parameters(function: str) -> list[str]:
    """Parameter names of a compiled function, read from the signature in its docstring."""
    document = getattr(_kernels, function).__doc__
    signature = re.match(rf"{function}\((?P<inside>.*)\) -> ", document)
    assert signature, document
    return re.findall(r"(\w+): ", signature["inside"])


def test_same_functions() -> None:
    assert public(kernels) - ABOUT_CPU == set(FUNCTIONS)
    assert public(reference) == set(FUNCTIONS)
    assert set(FUNCTIONS) <= set(dir(_kernels))
    assert public(cuda) == set(cuda.__all__) == set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_parameters(function: str) -> None:
    """Same names in the same order and the same defaults; keywords only; `backend` comes last."""
    oracle = inspect.signature(getattr(reference, function)).parameters
    wrapper = inspect.signature(getattr(kernels, function)).parameters
    assert list(wrapper) == [*oracle, "backend"]
    assert wrapper["backend"].default is None
    for name, parameter in oracle.items():
        assert parameter.kind is wrapper[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == wrapper[name].default
        assert parameter.annotation == wrapper[name].annotation
    assert compiled_parameters(function) == list(oracle)
    if function in cuda.__all__:
        own = inspect.signature(getattr(cuda, function)).parameters
        facts = ((p.name, p.kind, p.default) for p in own.values())
        assert list(facts) == [(p.name, p.kind, p.default) for p in oracle.values()]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_functions_take_keywords_only(function: str) -> None:
    given = arguments(function, FUNCTIONS[function].cases[0], "float32")
    with pytest.raises(TypeError):
        getattr(_kernels, function)(*given.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrapper_hands_over_every_argument(function: str) -> None:
    """The call in the wrapper names each parameter once, as itself."""
    tree = ast.parse(inspect.getsource(getattr(kernels, function)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    handed = [call for call in calls if isinstance(call.func, ast.Call)]
    assert len(handed) == 1
    names = [keyword.arg for keyword in handed[0].keywords]
    assert names == list(inspect.signature(getattr(reference, function)).parameters)
    for keyword in handed[0].keywords:
        assert isinstance(keyword.value, ast.Name)
        assert keyword.value.id == keyword.arg or keyword.value.id == "flat"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_arrays_choose_the_backend(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's arrays the compiled kernels, a GPU's the CUDA kernels; mixed ones are an error."""
    called: list[str | None] = []

    def call(backend: str | None, /, **given: Any) -> int:
        called.append(backend)
        return 0

    for backend in (None, "cuda"):
        monkeypatch.setitem(_backend._found, (function, backend), partial(call, backend))
    kernel, given = getattr(kernels, function), arguments(function, ordinary(function), "float64")
    kernel(**given)
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    there = {name: Cupy().asarray(value) for name, value in arrays.items()}
    with emulation(StrictDevice()):
        kernel(**{**given, **there})
        assert called == [None, "cuda"]
        for backend in ("cpu", "reference"):
            with pytest.raises(TypeError, match=f"{function}: backend '{backend}' takes NumPy"):
                kernel(**{**given, **there}, backend=backend)
        for name, value in arrays.items():
            if name != "lengths" and len(arrays) > 1:
                with pytest.raises(TypeError, match=f"{function}: {name} must be on the GPU as"):
                    kernel(**{**given, **there, name: value})
    assert called == [None, "cuda"]


def test_lengths_and_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's are looked at and copied to the GPU, those on it are taken as they are."""
    found: dict[str, Any] = {}
    monkeypatch.setitem(_backend._found, ("lstm_forward", "cuda"), found.update)
    given = arguments("lstm_forward", ordinary("lstm_forward"), "float32")
    T, B, _ = given["x"].shape
    given["variant"] = Variant(zoneout_h=0.5, rows=np.arange(B, dtype=np.int32))
    lengths = np.linspace(T, 0, B).astype(np.int32)
    arrays = {k: Cupy().asarray(v) for k, v in given.items() if isinstance(v, np.ndarray)}
    with emulation(StrictDevice()):
        for some in (lengths, Cupy().asarray(lengths)):
            kernels.lstm_forward(**{**given, **arrays, "lengths": some})
            assert isinstance(found["lengths"], DeviceArray)
            assert isinstance(found["variant"].rows, DeviceArray)
            assert isinstance(given["variant"].rows, np.ndarray)
            np.testing.assert_array_equal(found["lengths"].get(), lengths)
        with pytest.raises(ValueError, match="lstm_forward: lengths must be non-increasing"):
            kernels.lstm_forward(**{**given, **arrays, "lengths": lengths[::-1].copy()})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_functions_guard_their_memory(function: str) -> None:
    """Called directly with a faulty array, a compiled function raises instead of crashing."""
    own = FUNCTIONS[function]
    given = arguments(function, ordinary(function), "float64")
    compiled = getattr(_kernels, function)
    compiled(**{k: v.copy() if isinstance(v, np.ndarray) else v for k, v in given.items()})
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    for name, value in arrays.items():
        faulty = {
            "a list": value.tolist(),
            "another dtype": np.zeros(value.shape, np.int64),
            "not contiguous": np.stack([value, value], axis=-1)[..., 0],
        }
        if name in own.writes:
            faulty["read-only"] = value.copy()
            faulty["read-only"].flags.writeable = False
        if len(arrays) > 1:
            faulty["another size"] = np.ascontiguousarray(value[..., :-1])
            if value.dtype.kind == "f":
                faulty["another float type"] = value.astype(np.float32)
        for fault, bad in faulty.items():
            with pytest.raises((TypeError, ValueError, IndexError)) as caught:
                compiled(**(given | {name: bad}))
            assert str(caught.value).startswith(function), f"{name} {fault}: {caught.value}"


@pytest.mark.parametrize(
    ("function", "case", "name"),
    [
        ("xent_forward", "primes", "targets"),
        ("xent_gradients", "primes", "targets"),
        ("candidates_forward", "primes", "targets"),
        ("candidates_gradients", "primes", "samples"),
        ("hsoftmax_forward", "primes", "targets"),
        ("hsoftmax_gradients", "primes", "targets"),
        ("hsoftmax_log_prob", "primes", "first"),
        ("hsoftmax_log_prob", "primes", "children"),
        ("embedding_forward", "primes", "ids"),
        ("sgd_update_rows", "rows-plain", "rows"),
        ("adam_update_rows", "rows-plain", "rows"),
        ("adagrad_update_rows", "rows-plain", "rows"),
    ],
)
@pytest.mark.parametrize("bad", [10_000_000, -1])
def test_compiled_functions_guard_their_indices(
    function: str, case: str, name: str, bad: int
) -> None:
    chosen = next(c for c in FUNCTIONS[function].cases if c.name == case)
    given = arguments(function, chosen, "float64")
    given[name][-1 if bad > 0 else 0] = bad
    with pytest.raises((IndexError, ValueError), match=function):
        getattr(_kernels, function)(**given)


def test_no_inline_tolerances() -> None:
    """Tolerances live in pynlm/testing/tolerances.py, not in tests."""
    written = re.compile(r"\b(rtol|atol|approx|allclose|isclose|assert_allclose|places)\b")
    here = Path(__file__)
    offenders = [
        f"{path.name}:{number}"
        for path in [*(here.parent / "kernels").glob("*.py"), *here.parent.glob("test_*agree*.py")]
        if path != here
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if written.search(line)
    ]
    assert offenders == []
