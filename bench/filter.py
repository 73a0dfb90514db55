"""What the gradient filter of the exact softmax saves and costs.

`python -m bench.filter [--seconds S] [--out DIR]`. The kernel's loss and gradients with and without
`gradient_filter`, in turns, and how far the filtered gradients are from the exact ones. That
depends on how sharp the distributions are: logits are normal, added to the logarithms of Zipf's
law, with a low deviation (almost unigrams, as early in training) or a higher one. Independent rows
of the weight cancel in what is left out of dh, which in a model they need not: the error is given
also for rows with a common part as long as their own, which changes no probability. Writes
DIR/filter.json and DIR/filter.md. Wants an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import page
from bench.cases import Softmax, zipf_law
from bench.inputs import SEED, Array, zipf
from bench.small_page import SmallPage, options
from bench.timing import Budget, Contest, Times
from pynlm import kernels

CASES = [Softmax(700, 650, 10_000), Softmax(1024, 256, 81_000)]
DEVIATIONS = (0.3, 1.0, 3.0)
"""Of the logits about those of the unigrams, in nats."""
FILTERS = (0.0, 2.0**-16, 2.0**-12)
ERRORS = {"dw": "error of dw", "dh": "of dh", "dh_common": "of dh, common part"}

Row = dict[str, Any]


def measure(case: Softmax, deviation: float, budget: Budget) -> list[Row]:
    """Time and error of each filter, on the same numbers."""
    rng = np.random.default_rng(SEED)
    given: dict[str, Any] = {
        "h": rng.standard_normal((case.N, case.H), np.float32),
        "w": rng.standard_normal((case.V, case.H), np.float32) * np.float32(case.H**-0.5),
        "b": np.log(zipf_law(case.V)).astype(np.float32),
        "targets": zipf(rng, case.V, case.N),
    }
    given["h"] *= np.float32(deviation)
    entropy = np.empty(case.N, np.float32)
    kernels.xent_entropy(entropy=entropy, h=given["h"], w=given["w"], b=given["b"])
    out: dict[str, Any] = {"nll": np.empty(case.N, np.float32)}
    out |= {f"d{name}": np.empty_like(given[name]) for name in ("h", "w", "b")}
    calls: dict[str, Callable[[], object]] = {
        f"{at:g}": partial(kernels.xent_gradients, **out, **given, gradient_filter=at)
        for at in FILTERS
    }
    seconds = Contest(calls).run(budget)
    common = rng.standard_normal(case.H, np.float32) * np.float32(case.H**-0.5)
    exact: dict[str, Array] = {}
    rows = []
    for at, (name, call) in zip(FILTERS, calls.items(), strict=True):
        given["w"] += common
        call()
        together = out["dh"].copy()
        given["w"] -= common
        call()
        made = {**{of: out[of].copy() for of in ("dh", "dw")}, "dh_common": together}
        exact = exact or made
        median, first = (Times.of(seconds[n]).median for n in (name, f"{FILTERS[0]:g}"))
        found = {"case": case.name, "deviation": deviation, "filter": at, "seconds": median}
        found |= {"perplexity": float(np.exp(entropy.mean())), "faster": first / median}
        rows.append(found | {of: _error(made[of], value) for of, value in exact.items()})
    return rows


def _error(got: Array, want: Array) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def render(facts: dict[str, str], rows: list[Row], n: int) -> str:
    """The page."""
    table = [
        [
            row["case"],
            f"{row['deviation']:g}",
            f"{row['perplexity']:,.0f}",
            f"2^{np.log2(row['filter']):.0f}" if row["filter"] else "none",
            page.duration(row["seconds"]),
            page.times(row["faster"]) if row["filter"] else "",
            *(f"{row[of]:.1%}" if row["filter"] else "" for of in ERRORS),
        ]
        for row in rows
    ]
    head = ["N,H,V", "deviation", "perplexity", "filter", "time", "faster", *ERRORS.values()]
    parts = [
        f"Loss and gradients of N rows of H over V words with {page.threads(n)}. Logits are normal "
        "about the logarithms of Zipf's law, with that deviation; perplexity is the exponential of "
        "their mean entropy, targets follow the law itself. Errors: norm of the difference from "
        "the exact gradient over its norm; of dh with independent rows of the weight, and with "
        "rows that have a common part as long as their own.",
        page.table(head, table),
    ]
    return page.small("Gradient filter", facts, parts, "filter")


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    given = options("filter", __doc__, 4.0, "case").parse_args(arguments)
    report, budget = SmallPage("filter"), Budget(given.seconds, least=3)
    rows = [row for case in CASES for deviation in DEVIATIONS
            for row in measure(case, deviation, budget)]  # fmt: skip
    report.write(given.out, {"filter": rows}, lambda facts, n: render(facts, rows, n))


if __name__ == "__main__":
    main()
