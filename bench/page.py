"""The Markdown page of a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench import ours
from bench.bars import Bar, bars, plain_met, shares
from bench.cases import Busy, TinyCall
from bench.catalogue import GOALS, LOOP_GOAL, PLAIN_GOAL, find
from bench.measure import TOLERABLE, Result
from bench.memory import Memory
from bench.record import Record

_SHAPES = {
    "recurrent": "Cases are T,B,I,H (steps, batch, input, hidden), ×2 for two layers.",
    "scoring": (
        "Contiguous text is scored as one row: cases are T,B,I,H (steps, batch, input, hidden), "
        "×2 for two layers. A case of one step is what `generate` and beams do. In all that is "
        "forward only pynlm's weights are packed beforehand (`kernels.pack`), as a session of "
        "ONNX Runtime packs its own; torch has no such thing for these modules."
    ),
    "ragged": (
        "Cases are T,B,I,H (steps, batch, input, hidden); rows end at lengths evenly spread from T "
        "down to T/4. torch packs the sequences and pads the results, ONNX Runtime is given the "
        "lengths, JAX masks the steps. Only the steps that rows take part in count as work."
    ),
    "variant": (
        "Cases are T,B,I,H (steps, batch, input, hidden). torch's modules have no such variant: "
        "its users write a loop over the steps. Weights can also be dropped before `nn.LSTM`, "
        "`nn.GRU` or `nn.RNN` is called with them (`functional_call`); the faster one counts "
        "(marked ◦ where it is the latter)."
    ),
    "projection": (
        "Cases are T,B,I,H (steps, batch, input, hidden); the state that goes back and out is half "
        "as wide as H. torch's is `nn.LSTM(proj_size=…)`."
    ),
    "bidirectional": (
        "Cases are T,B,I,H (steps, batch, input, hidden); one layer a direction, and y has both "
        "side by side. torch's is `nn.LSTM(bidirectional=True)`, `nn.GRU(bidirectional=True)`."
    ),
    "softmax": (
        "Cases are N,H,V (rows, hidden, vocabulary). torch does them in two ways, `nn.Linear` with "
        "`cross_entropy` and `linear_cross_entropy` in chunks; the faster one counts (marked ◦ "
        "where it is the latter)."
    ),
    "adaptive": (
        "Cases are N,H,V (rows, hidden, vocabulary) at the cutoffs of torch's users, with Zipfian "
        "targets; torch has `nn.AdaptiveLogSoftmaxWithLoss` for them. Chosen cutoffs are those of "
        "`heads.choose_cutoffs`, other work than torch's: results are compared at the same ones, "
        "and the work counted is pynlm's."
    ),
    "mixture": (
        "Cases are N,H,V (rows, hidden, vocabulary) of so many experts: loss and all gradients. "
        "torch's is its authors' code: the probabilities of all experts in memory, added up."
    ),
    "tiny": (
        f"{TinyCall.calls} calls of a module on one step of one row, I = H = {TinyCall.H}, "
        f"{TinyCall.V} classes: what a call costs by itself, in `pynlm.torch` and in `torch.nn`; "
        "training is forward and backward."
    ),
    "beside": (
        f"{Busy.calls} steps (forward, backward) of a module on T,B,H, each after a product of two "
        f"matrices of {Busy.product} by torch, whose threads then still spin, waiting for more."
    ),
    "script": (
        "A training step of a model written in torch (embedding, two recurrent layers, linear "
        "layer, `cross_entropy`, clipping, SGD), and the same after `pynlm.torch.replace(model)`; "
        "with our loss, `pynlm.torch.linear_cross_entropy` takes the place of the last two."
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
  quartiles in brackets. A contender of which one call takes longer than a whole case may is called
  once, without a call before it, and is marked so.
- Before each turn the process waits until none of its threads uses the CPU, so that nobody's
  spinning workers (torch's OpenMP spins for milliseconds after a call) take a core from the next;
  then one call that does not count wakes the contender's threads and fetches its data, and the next
  call is timed. Calls over 0.1 s go without.
- All use the same number of threads. JAX's pool has its size from a client of its own for each
  number of threads.
- ONNX Runtime runs one node a layer, weights packed when the session is made, input and output
  bound. JAX runs a jitted `lax.scan` after one product of the input for all steps, gradients by
  `jax.vjp`. pynlm packs the weights in each call that trains, beforehand for those that do not.
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
    parts += [_facts(record), _summary(record), *_goals(record)]
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
    return table(["", ""], rows)


def _summary(record: Record) -> str:
    rows = []
    for s in record.summaries():
        rows.append(
            [
                s.group,
                threads(s.threads),
                str(s.cases),
                times(s.mean),
                times(s.least),
                f"{percent(s.shares[0])} to {percent(s.shares[1])}",
            ]
        )
    head = ["", "threads", "cases", "geometric mean", "least", "share of peak"]
    return (
        "## Summary\n\nRatios are the fastest peer's time over pynlm's: above 1× pynlm is "
        "faster.\n\n" + table(head, rows)
    )


def _goals(record: Record) -> list[str]:
    """Each goal and whether it is met; nothing where no peer with a goal took part."""
    rows = [_bar(bar) for bar in bars(record)]
    if not rows:
        return []
    head = [
        *("", "threads", "against", "cases", "geometric mean", "goal", "least", "goal", "met"),
        "limit",
    ]
    text = (
        "## Goals\n\nRatios are the time of the peer that is named over pynlm's. Most goals are "
        "for all threads; the figures of others stand here for comparison. The limit is what the "
        "geometric mean would be if pynlm's products ran at the peak and all else took no time.\n\n"
    ) + table(head, rows)
    rows = [
        [s.work, threads(s.threads), str(s.cases), percent(s.least), percent(s.goal), met(s.met)]
        for s in shares(record)
    ]
    if rows:
        text += "\n\n" + table(["", "threads", "cases", "least share of peak", "goal", "met"], rows)
    return [text]


def _bar(bar: Bar) -> list[str]:
    goal, least = bar.goal, bar.goal.least
    aims = [f"{goal.mean:g}×", "" if least is None else f"{least:g}×"] if bar.aimed else ["", ""]
    return [
        bar.work,
        threads(bar.threads),
        goal.against,
        str(bar.cases),
        times(bar.mean),
        aims[0],
        times(bar.least),
        aims[1],
        met(bar.met) if bar.aimed else "",
        times(bar.limit),
    ]


def met(yes: bool) -> str:
    """Whether a goal is met, in a table."""
    return "yes" if yes else "**no**"


def _variants(record: Record) -> str:
    mean, greatest = PLAIN_GOAL
    rows = [
        [
            v.group,
            threads(v.threads),
            str(v.cases),
            times(v.plain),
            times(v.greatest),
            met(plain_met(v.plain, v.greatest)) if v.group in GOALS else "",
            times(v.work),
            times(v.loop),
        ]
        for v in record.variants()
    ]
    head = ["", "threads", "cases", "over the plain cell", "greatest", "met", "work"]
    head.append("torch's loop over pynlm")
    return (
        "## Variants beside the plain cell\n\nGeometric means of a variant's time over that of the "
        f"same layer without it, both pynlm's (goal: at most {mean:g}×, and {greatest:g}× in each "
        "case), and of the time of torch's loop over the variant's (goal: at least "
        f"{LOOP_GOAL.mean:g}×; for a projection and two directions torch has modules). Work is "
        "that of the matrix products over the plain cell's: at its rate the times would be in that "
        "proportion.\n\n" + table(head, rows)
    )


def _group(record: Record, group: str) -> str:
    counts = [n for n in record.threads if record.of(group, n)]
    results = [r for r in record.results if r.group == group]
    libraries = list(dict.fromkeys(name for r in results for name in r.libraries))
    head = ["case"]
    for n in counts:
        head += [f"{threads(n)}: pynlm", *libraries, "ratio", "share of peak", "peer's"]
    rows = []
    for case in dict.fromkeys(r.case for r in results):
        row = [_described(group, case)]
        for n in counts:
            row += _cells(record, [r for r in record.of(group, n) if r.case == case], libraries)
        rows.append(row)
    return f"## {group}\n\n{_SHAPES[_kind(record, group)]}\n\n{table(head, rows)}"


def _kind(record: Record, group: str) -> str:
    """Which of `_SHAPES` explains a group."""
    kinds = ("projection", "bidirectional", "scoring", "ragged", "adaptive", "mixture", "tiny")
    kinds += ("script", "beside")
    words = [word for word in kinds if word in group]
    if words:
        return words[0]
    if any(v.group == group for v in record.variants()):
        return "variant"
    return next(r.family for r in record.results if r.group == group)


def _cells(record: Record, results: list[Result], libraries: list[str]) -> list[str]:
    """pynlm, each library's fastest way, ratio to the fastest of all, shares."""
    if not results:
        return [""] * (4 + len(libraries))
    (r,) = results
    theirs, ratio, share = [_time(r, r.fastest(name)) for name in libraries], "", ""
    if r.peer is not None and r.ratios is not None:
        goal = record.step_goal(r)
        aimed = f", goal {goal:g}×" if goal else ""
        doubt = " †" if r.unfair else ""
        ratio = f"**{times(r.ratio)}** ({r.ratios[0]:.2f}–{r.ratios[2]:.2f}{aimed}){doubt}"
        share = percent(record.share(r, r.peer))
    return [duration(r.ours.median), *theirs, ratio, percent(record.share(r)), share]


def _time(r: Result, contender: str | None) -> str:
    if contender is None:
        return ""
    once = " (once)" if r.times[contender].rounds == 1 < r.ours.rounds else ""
    return duration(r.times[contender].median) + (" ◦" if "(" in contender else "") + once


def _described(group: str, case: str) -> str:
    """A case's name, with what it is in words where it has such."""
    detail: str = getattr(find(group, case), "detail", "")
    return f"{case}: {detail}" if detail else case


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
        f"MiB, with {threads(memory[0].threads)}.\n\n" + table(head, rows)
    )


def small(title: str, facts: Mapping[str, str], parts: Iterable[str], module: str) -> str:
    """A page of one benchmark: what was measured where, paragraphs and tables, who makes it."""
    last = f"`python -m bench.{module}` makes this page.\n"
    return "\n\n".join([f"# {title}", table(["", ""], facts.items()), *parts, last])


def table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
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
    found = f"{result.group:<24} {result.case:<16} {own:>22} of peak"
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
