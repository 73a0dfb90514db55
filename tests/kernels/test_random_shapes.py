"""Any shape: hypothesis draws the dimensions, lengths and options; the compiled code must agree.

And any argument: what a kernel cannot take it must refuse by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pynlm import kernels
from pynlm.testing import (
    DTYPES,
    FUNCTIONS,
    Case,
    arguments,
    assert_same_bits,
    check_against_reference,
    check_threads,
)
from pynlm.testing.arguments import beyond
from pynlm.testing.checks import run, run_oracle, specified

# `make fuzz` sets it: so many examples, other ones in every run.
FUZZ = int(os.environ.get("PYNLM_FUZZ", "0"))
# Else the same examples in every run, so that a failure can be repeated.
quick = settings(
    max_examples=FUZZ or 40, deadline=None, derandomize=not FUZZ, database=None, print_blob=True
)

RECURRENT = ["lstm", "gru", "rnn"]


@st.composite
def recurrent_cases(
    draw: st.DrawFn, most: tuple[int, int, int, int] = (9, 35, 40, 70), kinks: bool = False
) -> Case:
    """A case of a recurrent kernel, up to `most` T, B, I, H; `kinks`: what float64 is needed for.

    Next to the kink of relu or of clipping a rounding error flips a derivative, and layer norm may
    divide by a deviation that is nothing but rounding errors.
    """
    kernel = draw(st.sampled_from(RECURRENT))
    T, B = draw(st.integers(0, most[0])), draw(st.integers(0, most[1]))
    dims = {"T": T, "B": B, "I": draw(st.integers(1, most[2])), "H": draw(st.integers(1, most[3]))}
    options: dict[str, Any] = {}
    if kernel == "rnn":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"] if kinks else ["tanh"]))
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
        options["lengths"] = sorted(lengths, reverse=True)
    variants = {"mask_h": st.just(True), "zoneout_h": st.sampled_from([0.1, 0.5])}
    if kernel == "lstm":
        variants |= {"peephole": st.just(True), "zoneout_c": st.sampled_from([0.1, 0.5])}
        variants |= {"coupled": st.just(True), "projection": st.integers(1, 20)}
        if kinks:
            variants["clip_c"] = st.sampled_from([0.3, 1.0])
    if kernel == "gru":
        variants["reset_before"] = st.just(True)
    if kinks:
        variants["layer_norm"] = st.just(True)
    if draw(st.booleans()):
        options |= draw(st.fixed_dictionaries({}, optional=variants))
    # Not defined together; and gradients through a norm of few numbers cancel.
    if "reset_before" in options or min(dims["I"], options.get("projection", dims["H"])) < 4:
        options.pop("layer_norm", None)
    if options.keys() & {"zoneout_h", "zoneout_c"}:
        # What is not sampled is evaluation, which rnn_backward has no part in.
        sample = True if kernel == "rnn" else draw(st.booleans())
        options |= {"sample": sample, "row_ids": draw(st.booleans())}
        options["time0"] = draw(st.integers(0, 100))
    return Case(kernel, f"random {dims} {options}", dims, options)


@st.composite
def head_cases(draw: st.DrawFn) -> Case:
    dims = {"N": draw(st.integers(0, 80)), "H": draw(st.integers(1, 70))}
    dims["V"] = draw(st.integers(1, 900))
    options: dict[str, Any] = {"bias": draw(st.booleans()), "weights": draw(st.booleans())}
    further = {
        "label_smoothing": st.sampled_from([0.1, 1.0]),
        "z_loss": st.just(0.01),
        "temperature": st.sampled_from([0.5, 3.0]),
        "k": st.integers(1, dims["V"]),
    }
    options |= draw(st.fixed_dictionaries({}, optional=further))
    return Case("xent", f"random {dims} {options}", dims, options)


@st.composite
def hsoftmax_cases(draw: st.DrawFn) -> Case:
    dims = {"N": draw(st.integers(0, 80)), "H": draw(st.integers(1, 150))}
    tree = draw(
        st.sampled_from(["huffman", "ternary", "balanced", "classes", "clusters", "flat", "chain"])
    )
    # a chain's counts are powers of 2 in 64 bits
    dims["V"] = draw(st.integers(1, 60 if tree == "chain" else 900))
    further = {"targets": st.just("same"), "k": st.integers(1, dims["V"])}
    options = {"tree": tree, "bias": draw(st.booleans()), "weights": draw(st.booleans())}
    options |= draw(st.fixed_dictionaries({}, optional=further))
    return Case("hsoftmax", f"random {dims} {options}", dims, options)


@st.composite
def candidates_cases(draw: st.DrawFn) -> Case:
    dims = {"N": draw(st.integers(0, 80)), "H": draw(st.integers(1, 150))}
    dims["V"] = draw(st.integers(1, 900))
    dims["K"] = draw(st.integers(1, dims["V"]))
    names = ("bias", "weights", "counts", "corrected", "remove_hits")
    options: dict[str, Any] = {name: draw(st.booleans()) for name in names}
    options["objective"] = draw(st.sampled_from(["softmax", "logistic"]))
    further = {"targets": st.just("same"), "temperature": st.sampled_from([0.5, 3.0])}
    options |= draw(st.fixed_dictionaries({}, optional=further))
    return Case("candidates", f"random {dims} {options}", dims, options)


@st.composite
def linear_cases(draw: st.DrawFn) -> Case:
    dims = {"N": draw(st.integers(0, 80)), "I": draw(st.integers(1, 300))}
    dims["O"] = draw(st.integers(1, 150))
    options = {"bias": draw(st.booleans())}
    return Case("linear", f"random {dims} {options}", dims, options)


dtypes = st.sampled_from(DTYPES)


def check_recurrent(case: Case, dtype: str) -> None:
    for direction in ("forward", "backward"):
        check_against_reference(f"{case.kernel}_{direction}", case, dtype)
        check_threads(f"{case.kernel}_{direction}", case, dtype)


@quick
@given(recurrent_cases(), dtypes)
def test_recurrent(case: Case, dtype: str) -> None:
    check_recurrent(case, dtype)


@quick
@given(recurrent_cases(kinks=True))
def test_recurrent_with_kinks(case: Case) -> None:
    check_recurrent(case, "float64")


@quick
@given(head_cases() | hsoftmax_cases() | candidates_cases(), dtypes)
def test_heads(case: Case, dtype: str) -> None:
    for function in (name for name in FUNCTIONS if name.startswith(f"{case.kernel}_")):
        # of logits that are equal but for rounding the backends may choose either
        chooses = function.endswith(("_top_k", "_sample"))
        check_against_reference(function, case, "float64" if chooses else dtype)
        check_threads(function, case, dtype)


@quick
@given(linear_cases(), dtypes)
def test_linear(case: Case, dtype: str) -> None:
    for function in ("linear_forward", "linear_backward"):
        check_against_reference(function, case, dtype)
        check_threads(function, case, dtype)


small_cases = recurrent_cases(most=(5, 5, 9, 20), kinks=True)
directions = st.sampled_from(["forward", "backward"])


def spoil_an_element(
    case: Case, given: dict[str, Any], names: list[str], value: float, draw: Any
) -> tuple[str, tuple[int, ...]] | None:
    """Overwrite one element of one of the inputs `names`, and say which."""
    names = [name for name in names if given.get(name) is not None and given[name].size]
    if not names:
        return None
    name = draw(st.sampled_from(names))
    usable = np.ones(given[name].shape, bool)
    if given[name].ndim == 3:
        # What stands beyond a row's length has no effect.
        usable[beyond(case)] = False
    elif name in ("h0", "c0") and case.dims["T"]:
        # The same of the initial state of a row without steps.
        usable[beyond(case)[0]] = False
    found = np.argwhere(usable)
    if not len(found):
        return None
    place = tuple(int(i) for i in found[draw(st.integers(0, len(found) - 1))])
    given[name][place] = value
    return name, place


INPUTS = ["x", "h0", "c0", "dy", "dh_last", "dc_last"]
WEIGHTS = ["w_ih", "w_hh", "b", "b_hn", "peephole"]
OUTPUTS = ["y", "h_last", "c_last", "dx", "dh0", "dc0"]


@quick
@given(small_cases, directions, dtypes, st.data())
def test_nan_shows(case: Case, direction: str, dtype: str, data: st.DataObject) -> None:
    """Wherever it stands: in all outputs that depend on it.

    Others of its row may show it too, where a product with 0 stands for nothing at all.
    """
    function = f"{case.kernel}_{direction}"
    given = arguments(function, case, dtype)
    spoiled = spoil_an_element(case, given, INPUTS + WEIGHTS, np.nan, data.draw)
    got, want = run(function, given, "cpu"), run_oracle(function, given)
    for output, expected in want.items():
        if isinstance(expected, np.ndarray):
            mine, theirs = (
                np.isnan(specified(function, output, x[output], x, case)) for x in (got, want)
            )
            what = f"{function} NaN in {spoiled}: isnan({output})"
            assert_same_bits(mine & theirs, theirs, what=what, case=case)


@quick
@given(small_cases, directions, dtypes, st.sampled_from([np.nan, np.inf, -np.inf, 1e30]), st.data())
def test_rows_do_not_see_each_other(
    case: Case, direction: str, dtype: str, value: float, data: st.DataObject
) -> None:
    """Whatever one of them holds, the others' bits stay."""
    function = f"{case.kernel}_{direction}"
    given = arguments(function, case, dtype)
    clean = run(function, given, "cpu")
    spoiled = spoil_an_element(case, given, INPUTS, value, data.draw)
    if spoiled is None:
        return
    name, place = spoiled
    got = run(function, given, "cpu")
    others = [b for b in range(case.dims["B"]) if b != place[-2]]
    for output in OUTPUTS:
        if output in got:
            mine, before = (x[output][..., others, :] for x in (got, clean))
            what = f"{function} {value} in {name}{list(place)}: {output} of the other rows"
            assert_same_bits(mine, before, what=what, case=case)


def along(change: Callable[[np.ndarray, int], np.ndarray]) -> Callable[..., np.ndarray]:
    """`change` along an axis that is drawn."""
    return lambda x, draw: change(x, draw(st.integers(0, x.ndim - 1)))


def every_second(x: np.ndarray, axis: int) -> np.ndarray:
    return np.repeat(x, 2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]


def unaligned(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = np.ndarray(x.shape, x.dtype, np.empty(x.nbytes + 1, np.uint8), 1)
    y[...] = x
    return y


def read_only(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y.flags.writeable = False
    return y


def larger(x: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate([x, np.ones((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)], axis)


def smaller(x: np.ndarray, axis: int) -> np.ndarray:
    return np.delete(x, 0, axis) if x.shape[axis] else larger(x, axis)


# The same numbers in another layout. Refused, or (as small arrays may happen to be contiguous all
# the same) taken as what they are.
LAYOUTS: dict[str, Callable[..., Any]] = {
    "every second": along(every_second),
    "backward": along(lambda x, axis: np.flip(np.flip(x, axis).copy(), axis)),
    "in Fortran order": lambda x, draw: np.asfortranarray(x),
    "unaligned": lambda x, draw: unaligned(x),
    "read-only": lambda x, draw: read_only(x),
}
# Something else. Refused.
FAULTS: dict[str, Callable[..., Any]] = {
    "a list": lambda x, draw: x.tolist(),
    "a buffer": lambda x, draw: memoryview(x),
    "a number": lambda x, draw: 1.0,
    "of another type": lambda x, draw: np.zeros(
        x.shape,
        draw(
            st.sampled_from([t for t in ("f2", "f4", "f8", "i8", "c16", "?", "O") if x.dtype != t])
        ),
    ),
    "of other bytes": lambda x, draw: x.astype(x.dtype.newbyteorder()),
    "larger": along(larger),
    "smaller": along(smaller),
    "flat": lambda x, draw: x.reshape(-1) if x.ndim > 1 else x[None],
    "deeper": lambda x, draw: x[..., None],
    "without dimensions": lambda x, draw: np.zeros((), x.dtype),
}


@quick
@given(small_cases, directions, dtypes, st.data())
def test_any_argument(case: Case, direction: str, dtype: str, data: st.DataObject) -> None:
    function = f"{case.kernel}_{direction}"
    given = arguments(function, case, dtype)
    names = [name for name, value in given.items() if isinstance(value, np.ndarray)]
    spoiled = dict(given)
    faults = 0
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        fault = data.draw(st.sampled_from([*LAYOUTS, *FAULTS]), name)
        spoiled[name] = {**LAYOUTS, **FAULTS}[fault](given[name], data.draw)
        faults += fault in FAULTS
        if faults:
            break  # two wrong sizes could agree
    expected = run(function, given, "cpu")
    try:
        getattr(kernels, function)(**spoiled)
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{function}: "), error
        assert "got" in str(error), error
        return
    assert not faults, f"{function} took {spoiled}"
    for name, value in expected.items():
        if name != "return":
            assert_same_bits(
                specified(function, name, spoiled[name], spoiled, case),
                specified(function, name, value, expected, case),
                what=f"{function} {name}",
                case=case,
            )


@quick
@given(small_cases, directions, st.data())
def test_any_lengths(case: Case, direction: str, data: st.DataObject) -> None:
    """int32 [B], non-increasing, in [0, T]: or refused by name."""
    function = f"{case.kernel}_{direction}"
    given = arguments(function, case, "float64")
    T, B = case.dims["T"], case.dims["B"]
    lengths = data.draw(st.lists(st.integers(-1, T + 1), min_size=B, max_size=B))
    if lengths == sorted(lengths, reverse=True) and all(0 <= n <= T for n in lengths):
        return  # the other tests'
    given["lengths"] = np.array(lengths, np.int32)
    try:
        getattr(kernels, function)(**given)
    except ValueError as error:
        assert str(error).startswith(f"{function}: lengths"), error
    else:
        raise AssertionError(f"{function} took lengths {lengths} with T={T}")
