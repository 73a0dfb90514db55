"""Losses on a GPU, without one: chunks of tokens, ties, filters, whatever the catalogue has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pynlm import cuda, kernels
from pynlm.cuda import _columns, xent
from pynlm.testing import DTYPES, FUNCTIONS, arguments, check_against_reference, find_case
from pynlm.testing.checks import (
    assert_close,
    assert_same_bits,
    check_nan_shows,
    run,
    run_oracle,
)
from pynlm.testing.device_arrays import DeviceArray, unwrap
from pynlm.testing.emulated import EmulatedDevice, StrictDevice, emulation
from pynlm.testing.tolerances import kernel_tolerance

XENT = [name for name in FUNCTIONS if name.startswith("xent_")]
PASSES = ["xent_forward", "xent_gradients"]


class Recording(EmulatedDevice):
    """Keeps the size of the largest array that was asked for."""

    largest = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        made = super().empty(shape, dtype)
        self.largest = max(self.largest, made.nbytes)
        return made


@pytest.fixture(autouse=True)
def device() -> Iterator[Recording]:
    with emulation(Recording()) as own:
        yield own  # type: ignore[misc]


@pytest.mark.parametrize("function", XENT)
def test_tokens_go_in_chunks(
    function: str, device: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xent, "_CHUNK_BYTES", 1)
    case = find_case("xent", "many-rows")  # 301 tokens, 19 units, 67 words
    check_against_reference(function, case, "float64", "cuda")
    # a span of 101 rows for gradients, else as many as units
    rows = 101 if function == "xent_gradients" else 19
    assert device.largest <= rows * 96 * 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["many-rows", "everything", "many-words-everything", "one-word"])
@pytest.mark.parametrize("bound", [0.003, 0.2])
def test_gradient_filter(case: str, bound: float, dtype: str) -> None:
    chosen = find_case("xent", case)
    given = {**arguments("xent_gradients", chosen, dtype), "gradient_filter": bound}
    got, want = run("xent_gradients", given, "cuda"), run_oracle("xent_gradients", given)
    for name in ("nll", "dh", "dw", "db"):
        if want.get(name) is not None:
            assert_close(
                got[name], want[name], kernel_tolerance("xent", dtype), what=name, case=chosen,
                terms=chosen.terms,
            )  # fmt: skip


@pytest.mark.parametrize("function", XENT)
@pytest.mark.parametrize("case", ["everything", "many-words-everything"])
def test_same_bits_on_another_card(function: str, case: str) -> None:
    given = arguments(function, find_case("xent", case), "float32")
    one = run(function, given, "cuda")
    with emulation(EmulatedDevice(processors=5, seed=99)):
        other = run(function, given, "cuda")
    for name, value in one.items():
        if value is not None:
            assert_same_bits(other[name], value, what=name, case=case)


@pytest.mark.parametrize("function", [*PASSES, "xent_log_prob", "xent_entropy"])
@pytest.mark.parametrize("case", ["primes", "everything"])
def test_nan_shows(function: str, case: str) -> None:
    check_nan_shows(function, find_case("xent", case), "float32", "cuda")


CANDIDATES = ["candidates_forward", "candidates_gradients"]


@pytest.mark.parametrize("function", [*XENT, *CANDIDATES])
def test_waits_for_nothing_but_a_count(function: str) -> None:
    """And takes arrays that only the device's own functions take."""
    case = FUNCTIONS[function].cases[0]
    given = arguments(function, case, "float32")
    if function == "xent_top_k":
        given["ids"], given["log_prob"] = np.empty((13, 101), np.int32), np.empty((13, 101), "f4")
    expected = run(function, given, "cuda")
    with emulation(StrictDevice()) as strict:
        mine = {
            name: strict.xp.array(value) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        before = DeviceArray.waits
        count = getattr(kernels, function)(**mine)
        assert DeviceArray.waits - before == (function == "candidates_gradients")
    assert count == expected.pop("return")
    for name, value in expected.items():
        part = slice(count if name in ("rows", "drows", "db") and count else None)
        assert_same_bits(unwrap(mine[name])[part], value[part], what=name)


@pytest.mark.parametrize("function", CANDIDATES)
@pytest.mark.parametrize("objective", ["softmax", "logistic"])
def test_tokens_of_sampled_losses_go_in_chunks(
    function: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xent, "_CHUNK_BYTES", 1)
    case = find_case("candidates", f"many-rows-{objective}")
    check_against_reference(function, case, "float64", "cuda")


@pytest.mark.parametrize("objective", ["softmax", "logistic"])
def test_sampled_losses_show_nan(objective: str) -> None:
    for name in ("hits-removed", "tiny-everything"):
        case = find_case("candidates", f"{name}-{objective}")
        check_nan_shows("candidates_forward", case, "float64", "cuda")
        check_nan_shows("candidates_gradients", case, "float64", "cuda")


@pytest.mark.parametrize("objective", ["softmax", "logistic"])
def test_sampled_losses_have_the_same_bits_on_another_card(objective: str) -> None:
    given = arguments(
        "candidates_gradients", find_case("candidates", f"many-rows-{objective}"), "float32"
    )
    one = run("candidates_gradients", given, "cuda")
    with emulation(EmulatedDevice(processors=7, seed=99)):
        other = run("candidates_gradients", given, "cuda")
    count = one["return"]
    assert count == other["return"]
    for name in ("loss", "dh"):
        assert_same_bits(other[name], one[name], what=name)
    for name in ("rows", "drows", "db"):
        assert_same_bits(other[name][:count], one[name][:count], what=name)


def top_k(z: Any, K: int) -> tuple[Any, Any]:
    """Of logits [N, V], by K probabilities and ids."""
    z = np.ascontiguousarray(z)
    log_prob, ids = np.empty((len(z), K), z.dtype), np.empty((len(z), K), np.int32)
    kernels.xent_top_k(
        log_prob=log_prob, ids=ids, h=np.eye(len(z), dtype=z.dtype), w=z.T.copy(), backend="cuda"
    )
    return log_prob, ids


@pytest.mark.parametrize("K", [1, 5, 200, 201, 1500])
def test_of_equal_logits_smaller_ids_come_first(K: int) -> None:
    rng = np.random.default_rng(1)
    z = np.stack([np.zeros(1500), rng.integers(0, 3, 1500), rng.integers(0, 300, 1500)])
    z[1, 3] = -0.0
    _, ids = top_k(z, K)
    assert ids.tolist() == np.argsort(-z, axis=1, kind="stable")[:, :K].tolist()


def test_top_k_where_one_threads_words_are_best() -> None:
    """Words 4 t to 4 t + 3, and so on by 1024, are thread t's."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(2, 6000))
    z[:, np.arange(6000) // 4 % 256 < 199] += 100
    _, ids = top_k(z, 200)
    assert ids.tolist() == np.argsort(-z, axis=1, kind="stable")[:, :200].tolist()


@pytest.mark.parametrize("V", [5, 1500])
@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_no_distribution(V: int, fault: float) -> None:
    h, w = np.ones((3, 1)), np.zeros((V, 1))
    b = np.zeros(V)
    h[1] = fault
    w[:] = np.where(np.arange(V) == 2, 1, 0.5)[:, None]
    ids = np.empty(3, np.int32)
    kernels.xent_sample(ids=ids, h=h, w=w, b=b, seed=1, step=2, backend="cuda")
    assert ids[1] == -1
    assert (ids[[0, 2]] >= 0).all()
    log_prob, best = np.empty((3, 4)), np.empty((3, 4), np.int32)
    kernels.xent_top_k(log_prob=log_prob, ids=best, h=h, w=w, b=b, backend="cuda")
    assert np.isnan(log_prob[1]).all()
    assert np.isfinite(log_prob[[0, 2]]).all()
    assert ((best >= 0) & (best < V)).all()


@pytest.mark.parametrize("function", [*PASSES, *CANDIDATES])
def test_unknown_targets_give_nan(function: str) -> None:
    """Memory is safe, and the loss shows it (a GPU cannot raise without waiting)."""
    given = arguments(function, FUNCTIONS[function].cases[0], "float32")
    given["targets"][:3] = [-1, len(given["w"]), 2**31 - 1]
    getattr(cuda, function)(**given)
    for name in ("nll", "loss"):
        if given.get(name) is not None:
            np.testing.assert_array_equal(
                np.isnan(given[name]), np.arange(len(given[name])) < 3, err_msg=name
            )


def test_forbidden_words_are_never_drawn() -> None:
    b = np.full(3000, -np.inf)
    b[[17, 2999]] = 0
    ids = np.empty(64, np.int32)
    kernels.xent_sample(
        ids=ids, h=np.ones((64, 1)), w=np.zeros((3000, 1)), b=b, seed=1, step=2, backend="cuda"
    )
    assert set(ids.tolist()) == {17, 2999}


def test_products_of_what_cublas_cannot_read_are_refused(device: Recording) -> None:
    x, out = np.zeros((4, 6)), np.zeros((4, 4))
    device.matmul(out[:, :2], x[:, :3], x[:3, :2])
    with pytest.raises(ValueError, match="contiguous"):
        device.matmul(out, x[:, ::2], x[:3, :4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [2000, 5000])
@pytest.mark.parametrize("case", ["many-words", "many-words-everything"])
def test_blocks_divide_few_rows_of_many_words(
    case: str, words: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5003 of them, in rows that are unaligned."""
    launched = []
    start = EmulatedDevice._start

    def record(self: EmulatedDevice, source: Any, kernel: Any, *given: Any) -> None:
        launched.append(kernel.name)
        start(self, source, kernel, *given)

    monkeypatch.setattr(EmulatedDevice, "_start", record)
    monkeypatch.setattr(xent, "_PART_WORDS", words)
    monkeypatch.setattr(xent, "_FEW_ROWS", 17)
    check_against_reference("xent_log_prob", find_case("xent", case), dtype, "cuda")
    assert launched == ["xent_part_sums", "xent_part_log_prob"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("R", [0, 1, 128, 129, 600])
def test_column_sum(R: int, accumulate: bool, dtype: str) -> None:
    rng = np.random.default_rng(R)
    x, y = rng.normal(size=(R, 37)).astype(dtype), rng.normal(size=37).astype(dtype)
    want = x.sum(axis=0, dtype=np.float64) + accumulate * y.astype(np.float64)
    _columns.column_sum(y, x, accumulate=accumulate)
    assert_close(y, want, kernel_tolerance("linear", dtype), what="sum", terms=R)


def test_column_sum_of_more_rows_than_a_grid_has_blocks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_columns, "_MOST_DOWN", 2)
    x, y = np.random.default_rng(3).normal(size=(600, 37)), np.zeros(37)
    _columns.column_sum(y, x)
    assert_close(y, x.sum(axis=0), kernel_tolerance("linear", "float64"), what="sum", terms=600)


@pytest.mark.parametrize("T", [0, 2, 70])
def test_column_sum_of_rows_that_take_part(T: int) -> None:
    rng = np.random.default_rng(T)
    x, by, y = *rng.normal(size=(2, T * 3, 37)), np.empty(37)
    lengths = np.array([T, T // 2, 0], np.int32)
    x[np.arange(T).repeat(3) >= np.tile(lengths, T)] = np.nan
    _columns.column_sum(y, x, by=by, lengths=lengths)
    want = np.nansum(x * by, axis=0)
    assert_close(y, want, kernel_tolerance("linear", "float64"), what="sum", terms=3 * T)
