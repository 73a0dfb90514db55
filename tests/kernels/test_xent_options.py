"""Label smoothing, z-loss and temperature; most probable tokens, samples, entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pynlm import kernels, reference
from pynlm.testing import (
    CASES,
    DTYPES,
    arguments,
    assert_close,
    assert_same_bits,
    check_samples,
    find_case,
)
from pynlm.testing.cases import XENT_OPTIONS
from pynlm.testing.tolerances import CLOSED_FORM, kernel_tolerance

BACKENDS = ["reference", "cpu"]
PLAIN = [case for case in CASES["xent"] if not case.options.keys() & set(XENT_OPTIONS)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_by_hand(backend: str) -> None:
    """Two words with logits 0 and log 3 (after temperature 2): p = 1/4 and 3/4, Z = 4."""
    nll, loss = np.empty(1), np.empty(1)
    given: dict[str, Any] = {
        "h": np.ones((1, 1)),
        "w": np.array([[0.0], [2 * math.log(3)]]),
        "targets": np.array([1], np.int32),
        "temperature": 2.0,
        "backend": backend,
    }
    kernels.xent_forward(nll=nll, loss=loss, **given, label_smoothing=0.5, z_loss=3.0)
    plain, other = math.log(4 / 3), math.log(4)
    expected = 0.5 * plain + 0.5 * (plain + other) / 2 + 3 * other**2
    assert_close(nll, [plain], CLOSED_FORM, what="nll", backend=backend)
    assert_close(loss, [expected], CLOSED_FORM, what="loss", backend=backend)
    kernels.xent_forward(nll=nll, loss=loss, **given)
    assert_close(loss, [plain], CLOSED_FORM, what="plain loss", backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_without_options_the_bits_are_those_of_the_plain_loss(case: Any, dtype: str) -> None:
    """Asking for the loss, or naming the defaults, changes nothing."""
    plain, asked = (arguments("xent_gradients", case, dtype) for _ in range(2))
    asked |= {"loss": plain["nll"].copy(), "label_smoothing": 0.0, "z_loss": 0.0}
    kernels.xent_gradients(**plain)
    kernels.xent_gradients(**asked, temperature=1.0)
    for name in ("nll", "dh", "dw", "db"):
        if plain[name] is not None:
            assert_same_bits(asked[name], plain[name], what=name, case=case)
    assert_same_bits(asked["loss"], plain["nll"], what="loss", case=case)


def test_the_likelihood_is_never_smoothed() -> None:
    plain = arguments("xent_gradients", find_case("xent", "primes"), "float32")
    smoothed = {**plain, "nll": plain["nll"].copy(), "label_smoothing": 0.3, "z_loss": 1.0}
    kernels.xent_gradients(**plain)
    kernels.xent_gradients(**smoothed)
    assert_same_bits(smoothed["nll"], plain["nll"], what="nll")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_words(backend: str, dtype: str) -> None:
    """A bias of -inf takes a word out: no probability, no entropy, no sample."""
    given: dict[str, Any] = {
        "h": np.ones((50, 1), dtype),
        "w": np.zeros((4, 1), dtype),
        "b": np.array([0, -np.inf, 0, -np.inf], dtype),
        "backend": backend,
    }
    entropy, log_prob = np.empty(50, dtype), np.empty((50, 4), dtype)
    ids, top = np.empty(50, np.int32), np.empty((50, 4), np.int32)
    kernels.xent_entropy(entropy=entropy, **given)
    kernels.xent_sample(ids=ids, **given, seed=1, step=2)
    kernels.xent_top_k(log_prob=log_prob, ids=top, **given)
    want = np.full(50, math.log(2))
    tolerance = kernel_tolerance("xent", dtype)
    assert_close(entropy, want, tolerance, what="entropy", backend=backend)
    assert set(ids.tolist()) == {0, 2}
    assert (top == [0, 2, 1, 3]).all() and (log_prob[:, 2:] == -np.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_distribution_no_sample(backend: str) -> None:
    ids, h = np.empty(4, np.int32), np.array([[1.0], [np.nan], [np.inf], [2.0]])
    w = np.array([[0.0], [1.0], [2.0]])
    with np.errstate(invalid="ignore"):
        kernels.xent_sample(ids=ids, h=h, w=w, seed=1, step=1, backend=backend)
    assert (ids[[1, 2]] == -1).all() and (ids[[0, 3]] >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_distribution(temperature: float, dtype: str) -> None:
    """Chi-square of 100 000 draws, cells of expected 5 and more."""
    rows, V = 100_000, 600
    h, w = np.ones((rows, 1), dtype), np.random.default_rng(1).normal(size=(V, 1)).astype(dtype)
    ids = np.empty(rows, np.int32)
    kernels.xent_sample(ids=ids, h=h, w=w, seed=11, step=0, temperature=temperature)
    log_prob = np.empty((1, V))
    wide = {"h": h[:1].astype(np.float64), "w": w.astype(np.float64)}
    reference.xent_log_prob(log_prob=log_prob, **wide, temperature=temperature)
    check_samples(ids, np.exp(log_prob[0]))


def test_a_sample_depends_on_seed_step_time_and_row_alone() -> None:
    rng = np.random.default_rng(0)
    h, w = rng.normal(size=(400, 3)), rng.normal(size=(50, 3))

    def draw(h: Any = h, **where: Any) -> list[int]:
        ids = np.empty(len(h), np.int32)
        kernels.xent_sample(ids=ids, h=h, w=w, **{"seed": 1, "step": 2, "time": 3, **where})
        return ids.tolist()

    first = draw()
    assert draw() == first and draw(h[:7].copy()) == first[:7]
    some = np.array([399, 0, 17], np.int32)
    assert draw(h[some], rows=some) == [first[row] for row in some]
    others = [draw(seed=2), draw(step=3), draw(time=4), draw(layer=1), draw(seed=2, step=1)]
    assert all(other != first for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_lands_on_what_is_left(dtype: str) -> None:
    """All mass on the first of many words: rounding must not lead beyond it."""
    V = 5000
    b = np.full(V, -np.inf, dtype)
    b[[0, 1]] = 0, -60
    ids = np.empty(2000, np.int32)
    h, w = np.zeros((2000, 1), dtype), np.zeros((V, 1), dtype)
    kernels.xent_sample(ids=ids, h=h, w=w, b=b, seed=1, step=1)
    assert not ids.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["xent"], ids=str)
def test_the_most_probable_come_first(case: Any, dtype: str) -> None:
    """Falling, without repetition, and as `xent_log_prob` has them."""
    given = arguments("xent_top_k", case, dtype)
    kernels.xent_top_k(**given)
    log_prob, ids = given.pop("log_prob"), given.pop("ids")
    table = np.empty((case.dims["N"], case.dims["V"]), dtype)
    kernels.xent_log_prob(log_prob=table, **given)
    assert_same_bits(log_prob, np.take_along_axis(table, ids.astype(np.int64), 1), what="log_prob")
    assert (log_prob[:, :-1] >= log_prob[:, 1:]).all()
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    left = np.ones(table.shape, bool)
    np.put_along_axis(left, ids.astype(np.int64), values=False, axis=1)
    if left.any():
        assert (table[left].reshape(len(ids), -1).max(1) <= log_prob[:, -1]).all()


def test_equal_logits_come_by_rising_id() -> None:
    log_prob, ids = np.empty((2, 9)), np.empty((2, 9), np.int32)
    kernels.xent_top_k(log_prob=log_prob, ids=ids, h=np.ones((2, 1)), w=np.zeros((500, 1)))
    assert ids.tolist() == [list(range(9))] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES["xent"], ids=str)
def test_entropy_lies_between_certainty_and_log_v(case: Any, dtype: str) -> None:
    given = arguments("xent_entropy", case, dtype)
    kernels.xent_entropy(**given)
    most = np.nextafter(np.asarray(math.log(case.dims["V"]), dtype), np.asarray(np.inf, dtype))
    assert ((given["entropy"] >= 0) & (given["entropy"] <= most)).all()


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        ("xent_forward", {"label_smoothing": 1.5}, "label_smoothing must be in [0, 1], got 1.5"),
        ("xent_gradients", {"label_smoothing": -0.1}, "label_smoothing must be in [0, 1], "),
        ("xent_gradients", {"z_loss": -1.0}, "z_loss must be in [0, inf), got -1.0"),
        ("xent_forward", {"z_loss": math.inf}, "z_loss must be in [0, inf), got inf"),
        ("xent_forward", {"temperature": 0.0}, "temperature must be in (0, inf), got 0.0"),
        ("xent_log_prob", {"temperature": math.nan}, "temperature must be in (0, inf), got nan"),
        ("xent_entropy", {"temperature": -2}, "temperature must be in (0, inf), got -2.0"),
        ("xent_sample", {"temperature": "hot"}, "temperature must be a number, got str 'hot'"),
        ("xent_sample", {"seed": -1}, "seed must be in [0, 4294967295], got -1"),
        ("xent_sample", {"step": 0.5}, "step must be an integer, got float 0.5"),
        ("xent_sample", {"time": 2**32}, "time must be in [0, 4294967295], got 4294967296"),
        ("xent_sample", {"layer": 65536}, "layer must be in [0, 65535], got 65536"),
        ("xent_sample", {"rows": [0]}, "rows must be int32 [N="),
        (
            "xent_top_k",
            {"log_prob": np.empty((13, 102)), "ids": np.empty((13, 102), np.int32)},
            "K must be in [1, 101], got 102",
        ),
    ],
)
def test_errors(function: str, change: dict[str, Any], message: str) -> None:
    given = {**arguments(function, find_case("xent", "primes"), "float64"), **change}
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(kernels, function)(**given)
    assert str(caught.value).startswith(f"{function}: {message}")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_temperature_whose_inverse_overflows(backend: str) -> None:
    nll = np.empty(2, np.float32)
    h, w = np.zeros((2, 3), np.float32), np.ones((5, 3), np.float32)
    targets = np.array([0, 4], np.int32)
    kernels.xent_forward(nll=nll, h=h, w=w, targets=targets, temperature=1e-39, backend=backend)
    np.testing.assert_array_equal(nll, np.full(2, np.log(5), np.float32))


@pytest.mark.parametrize("function", ["xent_forward", "xent_gradients"])
def test_no_rows_of_a_large_vocabulary(function: str) -> None:
    """More words than fit a tile of narrow rows."""
    V = 2**21 + 1
    given = {"nll": np.empty(0), "h": np.empty((0, 1)), "w": np.ones((V, 1))}
    if function == "xent_gradients":
        given |= {"dh": np.empty((0, 1)), "dw": np.ones((V, 1))}
    getattr(kernels, function)(**given, targets=np.empty(0, np.int32))
    assert not given.get("dw", np.zeros(1)).any()
