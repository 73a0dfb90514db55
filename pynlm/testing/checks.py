"""Compare a backend with the oracle, and runs with different numbers of threads with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm import kernels, reference

from .arguments import FUNCTIONS, Arguments, arguments, beyond
from .cases import Case
from .tolerances import EXACT, Tolerance, chi_square_bound, kernel_tolerance

Array = npt.NDArray[Any]


def assert_close(
    actual: npt.ArrayLike,
    expected: npt.ArrayLike,
    tolerance: Tolerance,
    *,
    what: str,
    kernel: str = "",
    case: object = "",
    backend: str = "cpu",
    terms: int = 1,
) -> None:
    """Raise AssertionError unless `actual` agrees with `expected` within `tolerance`.

    NaN agrees with NaN, and an infinity with the same infinity.

    Parameters
    ----------
    actual, expected
        Arrays or numbers of one shape.
    tolerance
        From `tolerances`.
    what, kernel, case, backend
        Named in the report, with the instruction set, the worst index and both values there.
    terms
        Length of the longest sum behind an element.
    """
    got, want = np.asarray(actual), np.asarray(expected)
    where = f"case {case or '-'}, backend {backend}, ISA {isa(backend)}"
    head = f"{kernel or 'comparison'}: {what} ({where})"
    if got.shape != want.shape:
        raise AssertionError(f"{head}: shape {list(got.shape)}, expected {list(want.shape)}")
    if not got.size:
        return
    wide, aim = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(aim)
    same = (wide == aim) | (np.isnan(wide) & np.isnan(aim))
    scale = float(np.abs(aim[finite]).max(initial=0.0))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(wide - aim)
        bound = tolerance.bound(np.abs(np.where(finite, aim, 0.0)), scale, terms)
    ok = same | (finite & (difference <= bound))
    if ok.all():
        return
    # Worst = furthest outside its bound; what is not finite comes first.
    excess = np.where(ok, -np.inf, np.nan_to_num(difference - bound, nan=np.inf))
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), got.shape))
    allowed = float(np.broadcast_to(bound, got.shape)[index])
    raise AssertionError(
        f"{head}: {int((~ok).sum())} of {ok.size} elements differ; worst at {list(index)}: "
        f"got {float(wide[index])!r}, expected {float(aim[index])!r}, "
        f"difference {float(difference[index]):.3g}, allowed {allowed:.3g}"
    )


def assert_same_bits(
    actual: npt.ArrayLike, expected: npt.ArrayLike, *, what: str, case: object = ""
) -> None:
    """Raise AssertionError unless both have the same dtype, shape and values (NaN equal to NaN)."""
    got, want = np.asarray(actual), np.asarray(expected)
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    assert_close(got, want, EXACT, what=what, case=case)


def isa(backend: str) -> str:
    """Instruction set that the backend runs on, for reports."""
    if backend != "cpu":
        return "-"
    from pynlm import _kernels

    return _kernels.isa_name()


def run(function: str, given: Arguments, backend: str) -> dict[str, Any]:
    """Call the public kernel function on copies; return what it wrote, and "return"."""
    mine = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in given.items()}
    value = getattr(kernels, function)(**mine, backend=backend)
    written = {n: mine[n] for n in FUNCTIONS[function].writes if mine.get(n) is not None}
    return {**written, "return": value}


def run_oracle(function: str, given: Arguments) -> dict[str, Any]:
    """Call the reference on copies, floats widened to float64; return as `run`."""
    mine = {
        k: v.astype(np.float64 if v.dtype.kind == "f" else v.dtype)
        if isinstance(v, np.ndarray)
        else v
        for k, v in given.items()
    }
    value = getattr(reference, function)(**mine)
    written = {n: mine[n] for n in FUNCTIONS[function].writes if mine.get(n) is not None}
    return {**written, "return": value}


def specified(function: str, name: str, value: Any, result: dict[str, Any], case: Case) -> Any:
    """The part of a written argument that the contract specifies."""
    if name in FUNCTIONS[function].unspecified:
        taking_part = ~beyond(case)
        return value[:, taking_part] if name in ("norm", "rstd") else value[taking_part]
    of_rows = ("rows", "drows", "db")
    if (
        function in ("embedding_backward", "candidates_gradients", "hsoftmax_gradients")
        and name in of_rows
    ):
        return value[: result["return"]]
    return value


def check_against_reference(function: str, case: Case, dtype: Any, backend: str = "cpu") -> None:
    """Raise AssertionError unless `backend` agrees with the oracle on `case`.

    The oracle runs in float64 on the same (rounded) numbers.
    """
    given = arguments(function, case, dtype)
    got, want = run(function, given, backend), run_oracle(function, given)
    kernel = FUNCTIONS[function].kernel
    tolerance = kernel_tolerance(kernel, dtype, case.name)
    for name, value in want.items():
        if value is None:
            assert got[name] is None, f"{function} returned {got[name]!r}, expected None"
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert got[name].dtype == np.dtype(dtype)
        assert_close(
            specified(function, name, got[name], got, case),
            specified(function, name, value, want, case),
            EXACT if np.asarray(value).dtype.kind == "i" else tolerance,
            what=f"{function} {name} {np.dtype(dtype).name}",
            kernel=kernel,
            case=case,
            backend=backend,
            terms=case.terms,
        )


def check_nan_shows(function: str, case: Case, dtype: Any, backend: str = "cpu") -> None:
    """Raise AssertionError unless a NaN in an input shows where it does in the oracle.

    Training stops on a loss that is not a number, so no kernel may turn one into a number.
    """
    for name, value in arguments(function, case, dtype).items():
        if (
            not isinstance(value, np.ndarray)
            or value.dtype.kind != "f"
            or name in FUNCTIONS[function].writes
        ):
            continue
        given = arguments(function, case, dtype)
        given[name].reshape(-1)[0] = np.nan  # step 0 of the longest row, which takes part
        got, want = run(function, given, backend), run_oracle(function, given)
        for output, expected in want.items():
            if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
                assert_close(
                    np.isnan(specified(function, output, got[output], got, case)),
                    np.isnan(specified(function, output, expected, want, case)),
                    EXACT,
                    what=f"{function} NaN in {name}: isnan({output}) {np.dtype(dtype).name}",
                    case=case,
                )


def check_threads(function: str, case: Case, dtype: Any, threads: tuple[int, ...] = (1, 2)) -> None:
    """Raise AssertionError unless all numbers of threads give the same bits (cpu backend)."""
    given = arguments(function, case, dtype)
    before = kernels.get_num_threads()
    results = []
    try:
        for n in threads:
            kernels.set_num_threads(n)
            results.append(run(function, given, "cpu"))
    finally:
        kernels.set_num_threads(before)
    for n, result in zip(threads[1:], results[1:], strict=True):
        for name, value in results[0].items():
            if value is not None:
                assert_same_bits(
                    specified(function, name, result[name], result, case),
                    specified(function, name, value, results[0], case),
                    what=f"{function} {name} with {n} threads against {threads[0]}",
                    case=case,
                )


def check_samples(ids: npt.ArrayLike, probabilities: npt.ArrayLike) -> None:
    """Raise AssertionError unless `ids` [N] look like draws from `probabilities` [V].

    Pearson's chi-square; what is expected less than five times is counted together.
    """
    drawn, p = np.asarray(ids), np.asarray(probabilities, np.float64)
    expected, found = len(drawn) * p, np.bincount(drawn, minlength=len(p))
    assert len(found) == len(p), f"samples: token {len(found) - 1} drawn, V={len(p)}"
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    found = np.append(found[~rare], found[rare].sum())
    cells = expected > 0
    assert not found[~cells].any(), "samples: what has no probability was drawn"
    statistic = float(((found - expected)[cells] ** 2 / expected[cells]).sum())
    bound = chi_square_bound(int(cells.sum()) - 1)
    assert statistic < bound, f"samples: chi-square {statistic:.4g}, allowed {bound:.4g}"
