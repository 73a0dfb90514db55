"""Ways of calling a kernel from JAX: choice, threads, number formats."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pynlm
from pynlm import _kernels

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from pynlm.jax import initial_weights, lstm  # noqa: E402

WAYS = ["callback", *(["ffi"] if _kernels.xla_handlers() else [])]


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_the_environment_chooses() -> None:
    ask = "import pynlm.jax; print(pynlm.jax.calls_by())"
    assert run(ask, PYNLM_JAX="").stdout.strip() == WAYS[-1]
    for way in WAYS:
        assert run(ask, PYNLM_JAX=way).stdout.strip() == way
    wrong = run(ask, PYNLM_JAX="fii")
    assert "ValueError: PYNLM_JAX must be ffi or callback, got 'fii'" in wrong.stderr


def test_calls_that_xla_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a build with newer headers."""
    from pynlm.jax.calls import calls_by

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("API version 9.9")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    monkeypatch.setattr(_kernels, "xla_handlers", lambda: {"lstm_forward": None})
    monkeypatch.delenv("PYNLM_JAX", raising=False)
    with pytest.warns(RuntimeWarning, match=r"called through Python: API version 9\.9"):
        assert calls_by.__wrapped__() == "callback"
    monkeypatch.setenv("PYNLM_JAX", "ffi")
    with pytest.raises(RuntimeError, match="API version"):
        calls_by.__wrapped__()


STEPS = """
import jax, jax.numpy as jnp, pynlm, pynlm.jax
from pynlm.jax import initial_weights, lstm
pynlm.set_num_threads(2)
weights = initial_weights("lstm", jax.random.key(0), 256, 256)
x = jnp.ones((100, 32, 256))

@jax.jit
def step(w, x):
    loss = lambda w, x: (lstm(w, lstm(w, x)[0])[0] ** 2).mean()
    value, (dw, dx) = jax.value_and_grad(loss, (0, 1))(w, x)
    return jax.tree.map(lambda a, b: a - 0.1 * b, w, dw), x - dx, value

for _ in range(8):
    weights, x, value = step(weights, x)
print(float(value) > 0)
"""


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_waits_for_itself(way: str, threads: str) -> None:
    """Large arrays, steps dispatched ahead of one another, and a pool of XLA's of one thread."""
    done = run(STEPS, PYNLM_JAX=way, PJRT_NPROC=threads)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_threads_change_no_bit(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do numbers next to zero, which XLA's threads flush and ours keep."""
    from pynlm.jax import calls

    calls.calls_by()
    monkeypatch.setattr(calls, "calls_by", lambda: way)
    weights = initial_weights("lstm", jax.random.key(0), 64, 160)
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.standard_normal((9, 24, n)), jnp.float32) for n in (64, 160))
    # Not by XLA, which would flush them.
    weights["w_ih"] = jnp.asarray(np.asarray(weights["w_ih"]) * np.float32(1e-38))
    weights["b"] = jnp.zeros_like(weights["b"])

    @jax.jit
    def results(w: dict[str, jax.Array], x: jax.Array) -> object:
        y, back = jax.vjp(lambda w, x: lstm(w, x)[0], w, x)
        return y, back(dy)

    found = []
    for threads in (1, 2):
        pynlm.set_num_threads(threads)
        found.append([np.asarray(a) for a in jax.tree.leaves(results(weights, x))])
    for one, two in zip(*found, strict=True):
        assert np.array_equal(one, two)
    tiny = np.abs(found[0][0])
    assert ((tiny > 0) & (tiny < np.finfo(np.float32).tiny)).any()


def test_importing_pynlm_jax_is_by_name() -> None:
    done = run("import sys, pynlm, pynlm.onnx; print('jax' in sys.modules)")
    assert done.stdout.strip() == "False"
    assert Path(pynlm.__file__ or "").parent.joinpath("jax", "__init__.py").is_file()
