"""The loss over sampled tokens beside the exact one, and beside torch's.

`python -m bench.sampled [--seconds S] [--out DIR]`. Loss and all gradients of N rows of H over K of
V tokens, the same ones for all contenders: pynlm's kernel and its exact head, and in torch a gather
of the rows, a product and `cross_entropy`, with a sparse gradient of the table. What torch computes
is checked first. The time of drawing the samples stands beside it. Writes DIR/sampled.json and
DIR/sampled.md. Wants an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import page, peers
from bench.cases import Softmax
from bench.inputs import SoftmaxInputs, softmax_inputs
from bench.small_page import SmallPage, options
from bench.timing import Budget, Contest, Times
from bench.work import Work
from pynlm import kernels
from pynlm.heads import TokenSampler
from pynlm.testing import assert_close
from pynlm.testing.tolerances import EXACT as EXACT_TOLERANCE
from pynlm.testing.tolerances import torch_tolerance

Array = NDArray[Any]
Row = dict[str, Any]
CASES = [Softmax(700, 650, 33_000), Softmax(1024, 256, 81_000), Softmax(1024, 512, 267_000)]
SAMPLES = (1024, 8192)
OURS, DRAW, EXACT, TORCH = "pynlm", "drawing", "exact", "torch"
_OF_ROWS = ("rows", "drows", "db")


def measure(case: Softmax, samples: int, budget: Budget) -> Row:
    """Seconds of every contender."""
    given = softmax_inputs(case)
    sampler = TokenSampler("log-uniform", vocab_size=case.V, size=samples)
    drawn = sampler.draw(seed=1, step=1)
    expected = [
        np.log(sampler.expected(ids, drawn.tries)).astype(np.float32)
        for ids in (drawn.ids, given.targets)
    ]
    room = case.N + samples
    out: dict[str, Any] = {"loss": np.empty(case.N, np.float32), "dh": np.empty_like(given.h)}
    out |= {"rows": np.empty(room, np.int32), "db": np.empty(room, np.float32)}
    out["drows"] = np.empty((room, case.H), np.float32)
    numbers: dict[str, Any] = {"h": given.h, "w": given.w, "b": given.b, "targets": given.targets}
    ours = partial(
        kernels.candidates_gradients, **out, **numbers, samples=drawn.ids,
        log_expected=expected[0], target_log_expected=expected[1],
    )  # fmt: skip
    exact = partial(
        kernels.xent_gradients, **numbers, nll=np.empty(case.N, np.float32), dh=out["dh"],
        dw=np.empty_like(given.w), db=np.empty_like(given.b),
    )  # fmt: skip
    calls: dict[str, Callable[[], object]] = {
        OURS: ours, DRAW: partial(sampler.draw, seed=1, step=1), EXACT: exact,
    }  # fmt: skip
    if find_spec("torch") is not None:
        theirs = in_torch(given, drawn.ids, expected)
        count, terms = ours(), max(samples, case.N) + case.H
        for name, value in theirs.results().items():
            found = out[name][:count] if name in _OF_ROWS else out[name]
            tolerance = EXACT_TOLERANCE if name == "rows" else torch_tolerance("float32")
            assert_close(found, value, tolerance, what=name, terms=terms)
        calls[TORCH] = theirs.run
    seconds = Contest(calls).run(budget)
    medians = {name: Times.of(values).median for name, values in seconds.items()}
    flops = 6.0 * case.N * case.H * samples
    return {"case": case.name, "samples": samples, "flops": flops, "seconds": medians}


def in_torch(given: SoftmaxInputs, samples: Array, expected: list[Array]) -> Work:
    """Losses, dh and the gradients of table (sparse) and bias."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(kernels.get_num_threads())
    h, w, b = (torch.tensor(x, requires_grad=True) for x in (given.h, given.w, given.b))
    ids, targets = torch.tensor(samples).long(), torch.tensor(given.targets).long()
    of_samples, of_targets = map(torch.tensor, expected)
    both, hits = torch.cat([ids, targets]), targets[:, None] == ids
    first = torch.zeros(len(targets), dtype=torch.long)

    def run() -> torch.Tensor:
        h.grad = w.grad = b.grad = None
        rows = F.embedding(both, w, sparse=True)
        x = F.linear(h, rows[: len(ids)], b[ids]) - of_samples
        t = (h * rows[len(ids) :]).sum(1) + b[targets] - of_targets
        logits = torch.cat([t[:, None], x.masked_fill(hits, -torch.inf)], 1)
        losses = F.cross_entropy(logits, first, reduction="none")
        losses.sum().backward()
        return losses

    def results() -> dict[str, Array]:
        losses = run()
        assert h.grad is not None and w.grad is not None and b.grad is not None
        dw = w.grad.coalesce()  # rows rise, and each is there once
        (rows,) = dw.indices()
        return {
            "loss": losses.detach().numpy(),
            "dh": h.grad.numpy(),
            "rows": rows.numpy(),
            "drows": dw.values().numpy(),
            "db": b.grad[rows].numpy(),
        }

    return Work(run, results)


def render(facts: dict[str, str], rows: list[Row], n: int) -> str:
    """The page."""
    table = []
    for row in rows:
        seconds = row["seconds"]
        torch = seconds.get(TORCH)
        table.append(
            [
                row["case"],
                f"{row['samples']:,}",
                f"{1e3 * seconds[OURS]:.1f} ms",
                f"{row['flops'] / seconds[OURS] / 1e9:,.0f}",
                f"{100 * seconds[DRAW] / seconds[OURS]:.1f} %",
                page.times(seconds[EXACT] / seconds[OURS]),
                "" if torch is None else page.times(torch / seconds[OURS]),
            ]
        )
    head = ["N,H,V", "samples", "pynlm", "GFLOP/s", "drawing", "over exact", "over torch"]
    parts = [
        f"Loss and gradients of N rows of H over some of V words with {page.threads(n)}; the "
        "time of drawing the samples, which is not in it, as a share of it; how many times as "
        "long the exact head takes, and torch (gather, product, `cross_entropy`).",
        page.table(head, table),
    ]
    return page.small("Sampled softmax", facts, parts, "sampled")


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    given = options("sampled", __doc__, 8.0, "case").parse_args(arguments)
    report = SmallPage("sampled", peers.available(peers.TORCH))
    budget = Budget(given.seconds, least=3)
    rows = [measure(case, samples, budget) for case in CASES for samples in SAMPLES]
    report.write(given.out, {"sampled": rows}, lambda facts, n: render(facts, rows, n))


if __name__ == "__main__":
    main()
