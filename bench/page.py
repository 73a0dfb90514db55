"""The Markdown page of a record."""

from __future__ import annotations

from collections.abc import Iterable

from bench import ours
from bench.catalogue import FAMILIES, LOOP_GOAL, PLAIN_GOAL, Goal, Train
from bench.measure import TOLERABLE, Result
from bench.memory import Memory
from bench.record import Record

_SHAPES = {
    "recurrent": "Cases are T,B,I,H (steps, batch, input, hidden), ×2 for two layers.",
    "ragged": (
        "Cases are T,B,I,H (steps, batch, input, hidden); rows end at lengths evenly spread from T "
        "down to T/4. torch packs the sequences and pads the results. Only the steps that rows "
        "take part in count as work."
    ),
    "variant": (
        "Cases are T,B,I,H (steps, batch, input, hidden). torch's modules have no such variant: "
        "its users write a loop over the steps. Weights can also be dropped before `nn.LSTM`, "
        "`nn.GRU` or `nn.RNN` is called with them (`functional_call`); the faster one counts "
        "(marked ◦ where it is the latter)."
    ),
    "softmax": (
        "Cases are N,H,V (rows, hidden, vocabulary). torch does them in two ways, `nn.Linear` with "
        "`cross_entropy` and `linear_cross_entropy` in chunks; the faster one counts (marked ◦ "
        "where it is the latter)."
    ),
    "train": (
        "Forward, backward, clipping and update of the same model from the same weights. torch's "
        "head as above."
    ),
}

_METHOD = """\
## How it is measured

- All contenders of a case run in one process on the same numbers, after a check that their results
  agree. They take turns, call by call, in an order that changes from round to round. Times are
  medians over the rounds; a ratio is the median of the ratios within each round, with their
  quartiles in brackets.
- Before each turn the process waits until none of its threads uses the CPU, so that nobody's
  spinning workers (torch's OpenMP spins for milliseconds after a call) take a core from the next;
  then one call that does not count wakes the contender's threads and fetches its data, and the next
  call is timed. Calls over 0.1 s go without.
- All use the same number of threads.
- The peak is the best of many short bursts of independent multiply-adds in registers, measured
  throughout the run. A share of it counts the operations of the matrix products only: 2·G·H·(I+H)
  for a row and step of a recurrent layer with G gates, 2·H·V for a row of the softmax, three times
  that with gradients. The rest (gates, exponentials, clipping, update) takes time and counts as
  nothing.
- pynlm's kernels write to arrays allocated beforehand and take one bias; torch allocates its
  results and has two. Both compute the gradients of input, weights and biases.
- Variants run through pynlm's layers, and the timed call draws all masks. Results are compared with
  probability 0. The plain cell beside them is the same layer without the variant, in the same
  turns.
- Memory: each in its own process, above what it held after training a tiny model of the same kind.

`python -m bench.report` makes this page.
"""


def render(record: Record, plots: dict[str, str]) -> str:
    """The page.

    Parameters
    ----------
    record
        What was measured.
    plots
        Caption -> file name beside the page.
    """
    parts = [f"# {record.facts.get('CPU', record.name)}"]
    if warning := unfair(record):
        parts.append(f"> {warning}")
    parts += [_facts(record), _summary(record)]
    parts += [f"![{caption}]({file})" for caption, file in plots.items()]
    for group in record.groups:
        parts.append(_group(record, group))
    if record.variants():
        parts.append(_variants(record))
    if record.memory:
        parts.append(_memory(record.memory))
    if record.left_out:
        listed = "\n".join(f"- {case}: {why}" for case, why in record.left_out.items())
        parts.append(f"## Not run\n\n{listed}")
    return "\n\n".join([*parts, _METHOD])


def unfair(record: Record) -> str:
    """What is to be said about cases that others disturbed; empty if there are none."""
    count = sum(r.unfair for r in record.results)
    if not count:
        return ""
    return (
        f"Not to be relied on: during {count} of {len(record.results)} measurements (marked †) "
        f"other work took more than {percent(TOLERABLE)} of this machine, from which teams of "
        "threads suffer out of proportion."
    )


def _facts(record: Record) -> str:
    rows = list(record.facts.items())
    for n, peak in sorted(record.peaks.items()):
        figure = f"{peak['best'] / 1e9:.0f} GFLOP/s (median burst {peak['median'] / 1e9:.0f})"
        rows.append((f"float32 peak, {threads(n)}", figure))
    return _table(["", ""], rows)


def _summary(record: Record) -> str:
    rows = []
    for s in record.summaries():
        goal = record.goal(s.group, s.threads)
        rows.append(
            [
                s.group,
                threads(s.threads),
                str(s.cases),
                times(s.mean),
                times(s.least),
                _goal(goal) if goal else "",
                f"{percent(s.shares[0])} to {percent(s.shares[1])}",
            ]
        )
    head = ["", "threads", "cases", "geometric mean", "least", "goal", "share of peak"]
    return (
        "## Summary\n\nRatios are the fastest peer's time over pynlm's: above 1× pynlm is faster. "
        "Goals are for the geometric mean and for the least.\n\n" + _table(head, rows)
    )


def _goal(goal: Goal) -> str:
    return f"{goal.mean:g}×" + ("" if goal.least is None else f", {goal.least:g}×")


def _variants(record: Record) -> str:
    mean, greatest = PLAIN_GOAL
    rows = [
        [
            v.group,
            threads(v.threads),
            str(v.cases),
            times(v.plain),
            times(v.greatest),
            times(v.loop),
        ]
        for v in record.variants()
    ]
    head = ["", "threads", "cases", "over the plain cell", "greatest", "torch's loop over pynlm"]
    return (
        "## Variants beside the plain cell\n\nGeometric means of a variant's time over that of the "
        f"same layer without it, both pynlm's (goal: at most {mean:g}×, and {greatest:g}× in each "
        "case), and of the time of torch's loop over the variant's (goal: at least "
        f"{LOOP_GOAL:g}×).\n\n" + _table(head, rows)
    )


def _group(record: Record, group: str) -> str:
    family = next(r.family for r in record.results if r.group == group)
    counts = [n for n in record.threads if record.of(group, n)]
    head = ["case"]
    for n in counts:
        head += [f"{threads(n)}: pynlm", "peer", "ratio", "share of peak", "peer's"]
    goals = family == "train"
    rows = []
    for case in dict.fromkeys(r.case for r in record.results if r.group == group):
        row = [_described(case) if goals else case]
        for n in counts:
            row += _cells(record, [r for r in record.of(group, n) if r.case == case])
        rows.append(row)
    return f"## {group}\n\n{_SHAPES[_kind(record, group)]}\n\n{_table(head, rows)}"


def _kind(record: Record, group: str) -> str:
    """Which of `_SHAPES` explains a group."""
    if any(v.group == group for v in record.variants()):
        return "variant"
    if "ragged" in group:
        return "ragged"
    return next(r.family for r in record.results if r.group == group)


def _cells(record: Record, results: list[Result]) -> list[str]:
    if not results:
        return [""] * 5
    (r,) = results
    own = [duration(r.ours.median), "", "", percent(record.share(r)), ""]
    if r.peer is None or r.ratios is None:
        return own
    goal = record.step_goal(r)
    aimed = f", goal {goal:g}×" if goal else ""
    mark = " ◦" if "(" in r.peer else ""
    doubt = " †" if r.unfair else ""
    own[1] = duration(r.times[r.peer].median) + mark
    own[2] = f"**{times(r.ratio)}** ({r.ratios[0]:.2f}–{r.ratios[2]:.2f}{aimed}){doubt}"
    own[4] = percent(record.share(r, r.peer))
    return own


def _described(recipe: str) -> str:
    found = [c for c in FAMILIES["train"] if isinstance(c, Train) and c.recipe == recipe]
    return f"{recipe}: {found[0].detail}" if found else recipe


def _memory(memory: list[Memory]) -> str:
    rows = []
    for m in memory:
        rows.append(
            [
                m.case,
                m.contender,
                mebibytes(m.first),
                mebibytes(m.second - m.first, sign=True),
                mebibytes(m.last - m.second, sign=True),
                mebibytes(m.peak),
            ]
        )
    last = memory[0].steps
    head = ["model", "", "after step 1", "step 2", f"steps 3 to {last}", "peak"]
    return (
        "## Memory of training\n\nGrowth of resident memory from before the model is built, in "
        f"MiB, with {threads(memory[0].threads)}.\n\n" + _table(head, rows)
    )


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def threads(n: int) -> str:
    """ "1 thread", "2 threads"."""
    return f"{n} thread{'s' if n != 1 else ''}"


def times(ratio: float | None) -> str:
    """A ratio with two decimals, or nothing."""
    return "" if ratio is None else f"{ratio:.2f}×"


def percent(share: float) -> str:
    """A share in whole per cent."""
    return f"{share * 100:.0f} %"


def duration(seconds: float) -> str:
    """Milliseconds with three digits."""
    ms = seconds * 1e3
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def mebibytes(n: int, sign: bool = False) -> str:
    """Bytes in MiB with one decimal."""
    return f"{n / 2**20:{'+' if sign else ''}.1f}"


def line(result: Result, peak: float) -> str:
    """One result in one line, for the terminal."""
    own = f"{ours.NAME} {duration(result.ours.median):>8}  {percent(result.share(ours.NAME, peak))}"
    found = f"{result.group:<22} {result.case:<18} {own:>22} of peak"
    if result.peer is not None and result.ratios is not None:
        low, _, high = result.ratios
        peer = f"{result.peer} {duration(result.times[result.peer].median)}"
        found += f"  {times(result.ratio):>6} ({low:.2f}–{high:.2f}) of {peer}"
    if result.over_plain is not None:
        found += f"  {times(result.over_plain)} the plain cell's"
    found += f"  [{result.ours.rounds} rounds]"
    if result.unfair and result.others is not None:
        found += f"  † others took {percent(result.others)} of the machine"
    return found
