"""Heads, trained on the same text: `python -m bench.heads [--phase equal] [--heads NAME...] ...`.

One LSTM language model on the novels with all their words (81k types), with each head. The exact
head trains for ten minutes (`--seconds`) and so decides how many tokens all others are trained on
(phase `equal`); in the phase `epoch` the others go on to the end of the epoch. At some points the
model as it stands is evaluated on the test text, each token once and always normalised; that takes
no time of the training's. Each run is a process of its own.

Writes DIR/heads.json, heads.md and heads.png after each run. Rows of the heads.json that is there
stay, except those of the same head and seed. `--render` makes page and plot from it and runs
nothing. Wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

EXACT, USERS, OWN = "exact", "adaptive, users' cutoffs", "adaptive, own cutoffs"
HEADS: dict[str, tuple[str, ...]] = {
    EXACT: ("head.kind=full",),
    USERS: ("head.kind=adaptive", "head.cutoffs=[4000,20000]"),
    OWN: ("head.kind=adaptive",),
    "hierarchical, Huffman": ("head.kind=hierarchical", "head.tree=huffman"),
    "hierarchical, classes": ("head.kind=hierarchical", "head.tree=classes"),
    "sampled softmax": ("head.kind=sampled", "head.samples=1024"),
    "NCE": ("head.kind=nce",),
}
"""What is measured, each with its `--set` options."""
SAMPLING = ("sampled", "nce", "negative-sampling")

SEEDS = {name: (1, 2, 3) if name.startswith("adaptive") else (1,) for name in HEADS}
PHASES = ("equal", "epoch")
SECONDS = 600.0
SHARES = (0.25, 0.5, 1.0)
"""Of the exact head's time: when it is evaluated."""

RECIPE: dict[str, Any] = {
    "name": "heads",
    "data": {"level": "word", "min_count": 1},
    "model": {"embedding_size": 256, "hidden_sizes": [256], "init": "torch"},
    "train": {
        "batch_size": 32,
        "bptt": 35,
        "epochs": 1,
        "clip_norm": 1.0,
        # One at the end would be too many.
        "checkpoint_seconds": 1e9,
    },
    # The best of 0.02, 0.05, 0.1 and 0.2, of Adam and of SGD for the exact head on 10k words.
    "optimiser": {"kind": "adagrad", "lr": 0.05},
}

Row = dict[str, Any]


class _Enough(Exception):
    """The last point of a run is behind it."""


def run(request: Row) -> Row:
    """Train one head in this process, and evaluate it at the points asked for.

    Parameters
    ----------
    request
        `set` (overrides), `seed`, the text (`corpus`, or `text` and `test`, file names), and either
        `seconds` of training or numbers of `tokens`, rising: when to evaluate. The last ends the
        run, or the end of the epoch. `epoch`: whether to go on to there, evaluated each time that
        the tokens have doubled.

    Returns
    -------
    A row of the report, without the head's name.
    """
    from bench.memory import peak_memory, reset_peak
    from pynlm.language_model import LanguageModel
    from pynlm.train import Trainer
    from pynlm.train.config import read_toml
    from pynlm.train.data import make_batches

    marks = list(request["seconds"] or request["tokens"])
    points: list[Row] = []
    steps: list[tuple[int, float]] = []
    peak = whole = 0

    def watch(_: object) -> None:
        nonlocal peak, whole
        at = trainer.position
        if not steps:
            # What preparing the text took has been given back.
            reset_peak()
            whole = make_batches(trainer.recipe, trainer.data, 0).tokens
            while request["epoch"] and marks[-1] < whole:
                marks.append(min(2 * marks[-1], whole))
        steps.append((at.tokens, at.seconds))
        reached = (at.seconds if request["seconds"] else at.tokens) >= marks[0]
        if not reached and at.tokens < whole:
            return
        peak = max(peak, peak_memory())
        test = LanguageModel(trainer.model, trainer.tokenizer).evaluate(trainer.data.test)
        points.append({"tokens": at.tokens, "seconds": at.seconds, "test": test.to_dict()})
        said = f"  {at.tokens:,} tokens, {at.seconds:.0f} s: test {test.perplexity:.2f}"
        print(said, file=sys.stderr, flush=True)
        del marks[0]
        if not marks or at.tokens == whole:
            raise _Enough
        reset_peak()

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            RECIPE,
            corpus=request["corpus"],
            text=request["text"],
            test=request["test"],
            out=Path(folder) / "run",
            seed=request["seed"],
            overrides=request["set"],
            quiet=True,
            on_step=watch,
        )
        with suppress(_Enough):
            trainer.run()
        head = read_toml(trainer.folder / "config.toml")["head"]
    times = [0.0, *(seconds for _, seconds in steps)]
    return {
        "seed": request["seed"],
        "set": list(request["set"]),
        "head": head,
        "parameters": trainer.model.parameters.count,
        "vocabulary": trainer.tokenizer.vocab_size,
        "step_tokens": steps[0][0],
        "step_seconds": median(b - a for a, b in pairwise(times)),
        "peak_bytes": peak,
        "points": points,
    }


def measure(request: Row) -> Row:
    """`run` in a new process; RuntimeError if it fails."""
    command = [sys.executable, "-m", "bench.heads", "--run", json.dumps(request)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    row: Row = json.loads(done.stdout)
    return row


def equal_tokens(rows: Iterable[Row]) -> list[int]:
    """The tokens that the exact head was trained on, at each of its points.

    Raises
    ------
    ValueError
        There is no run of it.
    """
    for row in rows:
        if row["name"] == EXACT:
            return [point["tokens"] for point in row["points"]]
    raise ValueError(f"bench.heads: run the head {EXACT!r} first: it decides the tokens of all")


def merged(rows: Sequence[Row], row: Row) -> list[Row]:
    """The rows with another one, in place of that of the same head and seed."""
    kept = [r for r in rows if (r["name"], r["seed"]) != (row["name"], row["seed"])]
    order = list(HEADS)
    return sorted([*kept, row], key=lambda r: (order.index(r["name"]), r["seed"]))


# ---- the page


def page(rows: Sequence[Row]) -> str:
    """The report as Markdown.

    Raises
    ------
    ValueError
        No rows; or rows whose test texts are not the same: their perplexities cannot stand in one
        table.
    """
    if not rows:
        raise ValueError("bench.heads: no rows to make a page of")
    scored = {(p["test"]["tokens"], p["test"]["unk_tokens"]) for r in rows for p in r["points"]}
    if len(scored) != 1:
        raise ValueError(f"bench.heads: rows of different test texts (tokens, <unk>): {scored}")
    ((tokens, unknown),) = scored
    first = rows[0]
    lines = [
        "# Heads, trained",
        "",
        f"One LSTM ({_model()}) on a text of {first['vocabulary']:,} types, with each head. "
        f"Test perplexities are of the same {tokens:,} tokens, `</s>` and the {unknown:,} `<unk>` "
        "included, as one stream with carried state, from normalised probabilities: heads that "
        "sample in training are evaluated by the whole softmax on the same weights. The kind of "
        "optimiser and its rate were chosen for the exact head alone (on 10k words) and are used "
        "for all. Minutes are those of training steps, evaluation apart; tokens/s those of the "
        "median step; memory the most that the whole process held while it trained. Options in "
        "brackets were chosen by the head, or are defaults.",
    ]
    ends = {row["points"][-1]["tokens"] for row in rows}
    of_exact = {row["points"][-1]["tokens"] for row in rows if row["name"] == EXACT}
    for end in sorted(ends):
        if end in of_exact:
            title = f"The same {end:,} tokens, what the exact head reads in time"
        else:
            title = f"{end:,} tokens" + (", the whole epoch" if of_exact else "")
        lines += [*_table(rows, end, title), "", verdict(rows, end)]
    lines += ["", "![test perplexity by time](heads.png)", "", "## Runs", "", _runs(rows), ""]
    return "\n".join(lines)


def _runs(rows: Sequence[Row]) -> str:
    """Machine, version and circumstances of each run; early ones did not keep them."""
    from bench.page import table

    names = ("CPU", "CPUs", "pynlm", "date", "other work")
    return table(
        ["head", "seed", *names],
        [
            [row["name"], str(row["seed"]), *(row.get("facts", {}).get(n, "") for n in names)]
            for row in rows
        ],
    )


def verdict(rows: Sequence[Row], tokens: int) -> str:
    """Whether our cutoffs are worse than the users', after so many tokens, in a sentence.

    By more than the spread of seeds they are where the difference of the mean test perplexities
    exceeds the larger of the two standard deviations.
    """
    found = {name: _perplexities(rows, name, tokens) for name in (OWN, USERS)}
    if any(len(values) < 2 for values in found.values()):
        seeds = ", ".join(f"{name}: {len(values)}" for name, values in found.items())
        return f"Our cutoffs against the users': not judged, that takes two seeds each ({seeds})."
    difference = mean(found[OWN]) - mean(found[USERS])
    spread = max(map(stdev, found.values()))
    worse = "worse" if difference > spread else "not worse"
    share = difference / mean(found[USERS])
    return (
        f"Our cutoffs are **{worse}** than the users' by more than the spread of seeds: their mean "
        f"test perplexity is {difference:+.2f} ({share:+.2%}) beside the users', the larger "
        f"standard deviation is {spread:.2f} ({len(found[OWN])} and {len(found[USERS])} seeds)."
    )


def _perplexities(rows: Sequence[Row], name: str, tokens: int) -> list[float]:
    return [
        point["test"]["perplexity"]
        for row in rows
        for point in row["points"]
        if row["name"] == name and point["tokens"] == tokens
    ]


def _model() -> str:
    model, train, optimiser = RECIPE["model"], RECIPE["train"], RECIPE["optimiser"]
    return (
        f"H {model['hidden_sizes'][0]}, B {train['batch_size']}, T {train['bptt']}, "
        f"{optimiser['kind']} {optimiser['lr']:g}, gradients clipped to {train['clip_norm']:g}"
    )


def _table(rows: Sequence[Row], tokens: int, title: str) -> list[str]:
    """The rows that were evaluated after so many tokens, a line a head."""
    lines = [
        "",
        f"## {title}",
        "",
        "| head | options | seeds | parameters | tokens/s | minutes | peak MB | test perplexity "
        "| without `<unk>` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        found = [
            (row, point)
            for row in rows
            for point in row["points"]
            if row["name"] == name and point["tokens"] == tokens
        ]
        if not found:
            continue
        row = found[0][0]
        tests = [point["test"] for _, point in found]
        cells = [
            name,
            _options(row),
            len(found),
            f"{row['parameters']:,}",
            _spread([r["step_tokens"] / r["step_seconds"] for r, _ in found], ",.0f"),
            _spread([point["seconds"] / 60 for _, point in found], ".1f"),
            f"{max(r['peak_bytes'] for r, _ in found) / 1e6:,.0f}",
            _spread([test["perplexity"] for test in tests], ".2f"),
            _spread([test["perplexity_without_unk"] for test in tests], ".2f"),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _options(row: Row) -> str:
    """What the head was told and, in brackets, cutoffs that it chose, samples by default."""
    given = [text.removeprefix("head.") for text in row["set"] if text.startswith("head.")]
    chosen = row["head"].get("cutoffs")
    if chosen and not any(text.startswith("cutoffs") for text in given):
        given.append(f"({', '.join(map(str, chosen))})")
    if row["head"]["kind"] in SAMPLING and not any(text.startswith("samples") for text in given):
        given.append(f"(samples={row['head']['samples']})")
    return " ".join(given)


def _spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation."""
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}"


def draw(rows: Sequence[Row], png: Path) -> None:
    """Test perplexity against minutes of training: a colour a head, a line a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labelled = set()
    for row in rows:
        name = row["name"]
        axes.plot(
            [point["seconds"] / 60 for point in row["points"]],
            [point["test"]["perplexity"] for point in row["points"]],
            "o-",
            color=f"C{list(HEADS).index(name)}",
            ms=3,
            lw=1,
            label=None if name in labelled else name,
        )
        labelled.add(name)
    axes.set(xlabel="minutes of training", ylabel="test perplexity", xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(png, dpi=110)


def write(rows: Sequence[Row], out: Path) -> None:
    """The three files of the report."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "heads.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / "heads.md").write_text(page(rows), encoding="utf-8")
    draw(rows, out / "heads.png")


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phase", choices=PHASES, default="epoch", help="how far to train")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1, adaptive heads 1 2 3")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the exact head")
    parser.add_argument("--set", action="append", default=[], help="recipe.key=value, for all")
    parser.add_argument("--text", help="a text file instead of the corpus novels")
    parser.add_argument("--test", help="its test text")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="page and plot of what is there")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.run is not None:
        print(json.dumps(run(given.run)))
        return
    report = given.out / "heads.json"
    rows: list[Row] = json.loads(report.read_text(encoding="utf-8")) if report.exists() else []
    if given.render:
        if not rows:
            parser.error(f"--render: no rows in {report}")
        (given.out / "heads.md").write_text(page(rows), encoding="utf-8")
        draw(rows, given.out / "heads.png")
        print(page(rows))
        return
    from bench import machine

    failed = []
    for name in sorted(given.heads, key=list(HEADS).index):
        for seed in given.seeds or SEEDS[name]:
            exact = name == EXACT
            request = {
                "corpus": None if given.text else "novels",
                "text": given.text,
                "test": given.test,
                "set": [*HEADS[name], *given.set],
                "seed": seed,
                "seconds": [given.seconds * share for share in SHARES] if exact else [],
                "tokens": [] if exact else equal_tokens(rows),
                "epoch": given.phase == "epoch" and not exact,
            }
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            others = machine.OtherWork()
            try:
                row = measure(request)
            except RuntimeError as error:
                failed.append(str(error))
                continue
            facts = {**machine.facts([]), "other work": others.describe()}
            rows = merged(rows, {"name": name, **row, "facts": facts})
            write(rows, given.out)
    print(page(rows))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
