"""Losses over sampled tokens: closed forms, the exact softmax, torch, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pynlm import kernels
from pynlm.testing import DTYPES, arguments, assert_close, assert_same_bits, find_case
from pynlm.testing.tolerances import CLOSED_FORM, kernel_tolerance, torch_tolerance

FUNCTIONS = ["candidates_forward", "candidates_gradients"]
BACKENDS = ["reference", "cpu"]


def gradients(backend: str, objective: str = "softmax", **given: Any) -> dict[str, Any]:
    """Of float64 arguments, with a whole dw and db."""
    N, H = given["h"].shape
    V, K = len(given["w"]), len(given["samples"])
    out = {"loss": np.empty(N), "dh": np.empty((N, H)), "rows": np.empty(N + K, np.int32)}
    out |= {"drows": np.empty((N + K, H)), "db": np.empty(N + K)}
    n = kernels.candidates_gradients(**out, **given, objective=objective, backend=backend)
    dw, db = np.zeros((V, H)), np.zeros(V)
    dw[out["rows"][:n]], db[out["rows"][:n]] = out["drows"][:n], out["db"][:n]
    return {"loss": out["loss"], "dh": out["dh"], "dw": dw, "db": db, "rows": out["rows"][:n]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_logits(backend: str) -> None:
    """A target and its K samples are equally likely, but where a sample is the target."""
    targets = np.array([1, 4], np.int32)
    given = {"h": np.ones((2, 3)), "w": np.zeros((6, 3)), "b": np.full(6, 2.0)}
    got = gradients(backend, **given, targets=targets, samples=np.array([0, 1, 5], np.int32))
    assert_close(got["loss"], np.log([3, 4]), CLOSED_FORM, what="loss", backend=backend)
    want = [1 / 3 + 1 / 4, -2 / 3 + 1 / 4, 0, 0, -3 / 4, 1 / 3 + 1 / 4]
    assert_close(got["db"], want, CLOSED_FORM, what="db", backend=backend)
    assert got["rows"].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_logistic_by_hand(backend: str) -> None:
    """One target, one sample drawn three times, both with a correction."""
    loss = np.empty(1)
    kernels.candidates_forward(
        loss=loss,
        h=np.ones((1, 1)),
        w=np.array([[0.5], [-1.0]]),
        targets=np.array([0], np.int32),
        samples=np.array([1], np.int32),
        counts=np.array([3.0]),
        log_expected=np.array([0.25]),
        target_log_expected=np.array([-0.75]),
        objective="logistic",
        backend=backend,
    )
    want = math.log1p(math.exp(-1.25)) + 3 * math.log1p(math.exp(-1.25))
    assert_close(loss, [want], CLOSED_FORM, what="loss", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_all_tokens_once_are_the_exact_softmax(backend: str, temperature: float) -> None:
    case = find_case("xent", "weights")
    given = arguments("xent_gradients", case, "float64")
    kernels.xent_gradients(**given, temperature=temperature, backend=backend)
    V = case.dims["V"]
    names = ("h", "w", "b", "targets", "weights")
    got = gradients(
        backend,
        **{name: given[name] for name in names},
        samples=np.arange(V, dtype=np.int32),
        log_expected=np.zeros(V),
        target_log_expected=np.zeros(case.dims["N"]),
        temperature=temperature,
    )
    tolerance = kernel_tolerance("candidates", "float64")
    assert_close(got["loss"], given["nll"], tolerance, what="loss", terms=V)
    for name in ("dh", "dw", "db"):
        assert_close(got[name], given[name], tolerance, what=name, terms=V)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", ["softmax", "logistic"])
def test_a_count_is_so_many_samples(backend: str, objective: str) -> None:
    """A sample drawn twice is two tokens of the same weights drawn once each."""
    rng = np.random.default_rng(0)
    h, w, b = rng.normal(size=(4, 3)), rng.normal(size=(6, 3)), rng.normal(size=6)
    w[5], b[5] = w[2], b[2]
    targets = np.array([0, 1, 3, 3], np.int32)
    given = {"h": h, "w": w, "b": b, "targets": targets}
    twice = gradients(
        backend, objective, **given, samples=np.array([2, 4], np.int32), counts=np.array([2.0, 1.0])
    )
    apart = gradients(backend, objective, **given, samples=np.array([2, 4, 5], np.int32))
    for name in ("loss", "dh"):
        assert_close(twice[name], apart[name], CLOSED_FORM, what=name)
    assert_close(twice["dw"][2], apart["dw"][2] + apart["dw"][5], CLOSED_FORM, what="dw")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", ["softmax", "logistic"])
def test_both_functions_have_one_loss(objective: str, dtype: str) -> None:
    case = find_case("candidates", f"threads-{objective}")
    loss, both = (arguments(function, case, dtype) for function in FUNCTIONS)
    kernels.candidates_forward(**loss)
    kernels.candidates_gradients(**both)
    assert_same_bits(both["loss"], loss["loss"], what="loss", case=case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_torch(dtype: str) -> None:
    """Sampled softmax as gather, linear and cross_entropy."""
    torch = pytest.importorskip("torch")
    case = find_case("candidates", "many-rows-softmax")
    given = arguments("candidates_gradients", case, dtype)
    n = kernels.candidates_gradients(**given)
    h, w, b = (torch.tensor(given[name], requires_grad=True) for name in "hwb")
    ids, targets = (torch.tensor(given[name]).long() for name in ("samples", "targets"))
    x = torch.nn.functional.linear(h, w[ids], b[ids]) / given["temperature"]
    x = x - torch.tensor(given["log_expected"]) + torch.tensor(given["counts"]).log()
    t = ((h * w[targets]).sum(1) + b[targets]) / given["temperature"]
    logits = torch.cat([(t - torch.tensor(given["target_log_expected"]))[:, None], x], 1)
    zero = torch.zeros(len(targets), dtype=torch.long)
    losses = torch.nn.functional.cross_entropy(logits, zero, reduction="none")
    (losses * torch.tensor(given["weights"])).sum().backward()
    tolerance, rows = torch_tolerance(dtype), given["rows"][:n]
    assert_close(given["loss"], losses.detach().numpy(), tolerance, what="loss")
    assert_close(given["dh"], h.grad.numpy(), tolerance, what="dh")
    assert_close(given["drows"][:n], w.grad.numpy()[rows], tolerance, what="drows", terms=8)
    assert_close(given["db"][:n], b.grad.numpy()[rows], tolerance, what="db", terms=8)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": [-1] * 13}, IndexError, r"targets\[0\] must be in \[0, V=101\), got -1"),
        ({"samples": list(range(73, 102))}, IndexError, r"samples\[28\] must be in \[0, V=101\)"),
        ({"samples": [3, 3, *range(5, 32)]}, ValueError, "samples must be rising .* 3 after 3 at"),
        ({"samples": []}, ValueError, "samples must be int32 .*"),
        ({"objective": "hinge"}, ValueError, "objective must be one of softmax, logistic, got"),
        ({"remove_hits": 1}, TypeError, "remove_hits must be True or False, got 1"),
        ({"temperature": 0.0}, ValueError, "temperature must be in"),
    ],
)
def test_errors(
    function: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = arguments(function, find_case("candidates", "primes"), "float32")
    if change.get("samples") == []:
        for name in ("counts", "log_expected"):
            given[name] = None
    for name, value in change.items():
        given[name] = np.array(value, np.int32) if isinstance(value, list) else value
    with pytest.raises(error, match=f"^{function}: {message}"):
        getattr(kernels, function)(**given)
