"""Every backend has the same kernel functions with the same parameters, and guards its memory."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm import _kernels, kernels, reference
from pynlm.testing import FUNCTIONS, arguments

# Public, but about the compiled backend itself.
ABOUT_CPU = {"get_num_threads", "set_num_threads", "pack"}


def public(module: Any) -> set[str]:
    return {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}


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
def test_compiled_functions_guard_their_memory(function: str) -> None:
    """Called directly with a faulty array, a compiled function raises instead of crashing."""
    own = FUNCTIONS[function]
    case = next(c for c in own.cases if c.name.startswith(("primes", "rows-plain", "size-13")))
    given = arguments(function, case, "float64")
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
