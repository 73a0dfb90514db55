"""Report finished training runs: `python -m bench.runs RUN... [--untimed RUN...] [--out DIR]`.

Reads `log.jsonl` and `config.toml` of run folders and writes DIR/recipes.md, recipes.json and
recipes.png. With `--keep` the rows of the recipes.json that is there stay, except those of the same
recipe and seed: a report can be completed run by run. `make recipes` trains the runs of the report
first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESULTS = Path(__file__).resolve().parent / "results"


def read_run(folder: Path, *, timed: bool) -> dict[str, Any]:
    """What a finished run decided and reached; ValueError if it has not finished."""
    config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    if events[-1]["event"] != "finished":
        raise ValueError(f"read_run: {folder} has not finished")
    start, end = events[0], events[-1]
    epochs = [e for e in events if e["event"] == "epoch"]
    return {
        "recipe": start["recipe"],
        "seed": start["seed"],
        "parameters": start["parameters"],
        "epochs": end["epochs"],
        "figure": config.get("figure", {}),
        "valid": end["valid"],
        "test": end.get("test"),
        "tokens_per_second": _rate(epochs) if timed else None,
        "seconds": end["seconds"] + sum(e["valid_seconds"] for e in epochs) if timed else None,
        "curve": [
            [e["tokens"], e["train_nats"], e["valid_nats"]] for e in epochs if "valid_nats" in e
        ],
    }


def _rate(epochs: list[dict[str, Any]]) -> float:
    """Tokens a second of training steps, median over the epochs; the log has sums to their ends."""
    ends = [(0, 0.0), *((e["tokens"], e["seconds"]) for e in epochs)]
    return median((b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(ends))


def _number(x: float | None, form: str) -> str:
    return "–" if x is None else format(x, form)


def _spread(values: Sequence[float | None], form: str) -> str:
    """Mean ± standard deviation of the values that are known."""
    known = [x for x in values if x is not None]
    if not known:
        return "–"
    spread = f" ± {stdev(known):{form}}" if len(known) > 1 else ""
    return f"{mean(known):{form}}{spread}"


def _metric(run: dict[str, Any]) -> str:
    return str(run["figure"].get("metric", "perplexity"))


def _unit(metric: str) -> str:
    return " nats" if metric == "nats_per_token" else ""


def _minutes(run: dict[str, Any]) -> float | None:
    return None if run["seconds"] is None else run["seconds"] / 60


def page(runs: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    lines = [
        "# Recipes, trained",
        "",
        "Validation and test score each token once, as one stream with carried state. Rates and "
        "times are of two cores; runs without them shared the machine with other work. A rate is "
        "that of training steps, the median over the epochs; minutes are those of all training "
        "steps and of the validation after each epoch. The same seed gives the same figures on any "
        "number of threads.",
        "",
        "| recipe | seed | parameters | epochs | valid | test | bits a token (test, else valid) "
        "| published valid / test | tokens/s | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        test, figure, metric = run["test"], run["figure"], _metric(run)
        unit = _unit(metric)
        published = " / ".join(_number(figure.get(k), "g") for k in ("valid", "test"))
        lines.append(
            f"| {run['recipe']} | {run['seed']} | {run['parameters']:,} | {run['epochs']} "
            f"| {run['valid'][metric]:#.4g}{unit} "
            f"| {_number(test and test[metric], '#.4g')}{unit if test else ''} "
            f"| {(test or run['valid'])['bits_per_token']:.4f} | {published}{unit} "
            f"| {_number(run['tokens_per_second'], ',.0f')} | {_number(_minutes(run), '.1f')} |"
        )
    return "\n".join([*lines, *_means(runs), "", "![validation by tokens read](recipes.png)", ""])


def _means(runs: list[dict[str, Any]]) -> list[str]:
    """The table of the recipes with several seeds."""
    rows = []
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        same = [run for run in runs if run["recipe"] == recipe]
        if len(same) > 1:
            metric = _metric(same[0])
            valid, test = (
                _spread([run[split] and run[split][metric] for run in same], ".2f") + _unit(metric)
                for split in ("valid", "test")
            )
            rate = _spread([run["tokens_per_second"] for run in same], ",.0f")
            minutes = _spread([_minutes(run) for run in same], ".1f")
            rows.append(f"| {recipe} | {len(same)} | {valid} | {test} | {rate} | {minutes} |")
    head = [
        "",
        "Means ± standard deviations over the seeds:",
        "",
        "| recipe | seeds | valid | test | tokens/s | minutes |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *rows] if rows else []


def draw(runs: list[dict[str, Any]], png: Path) -> None:
    """Validation loss against tokens read: a panel a metric, a colour a recipe, a line a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = sorted({_metric(run) for run in runs}, reverse=True)
    recipes = list(dict.fromkeys(run["recipe"] for run in runs))
    figure = Figure(figsize=(3 + 4.5 * len(metrics), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = dict(zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True))
    labelled = set()
    for run in runs:
        recipe = run["recipe"]
        panels[_metric(run)].plot(
            [tokens / 1e6 for tokens, _, _ in run["curve"]],
            [valid for _, _, valid in run["curve"]],
            "o-",
            color=f"C{recipes.index(recipe)}",
            ms=2.5,
            lw=1,
            label=None if recipe in labelled else recipe,
        )
        labelled.add(recipe)
    for axes in panels.values():
        axes.set_xlabel("tokens read (millions)")
        axes.set_ylabel("validation, nats a token")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(png, dpi=110)


def _kept(report: Path, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an earlier report whose recipe and seed are not among the runs."""
    given = {(run["recipe"], run["seed"]) for run in runs}
    if not report.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))
    return [row for row in rows if (row["recipe"], row["seed"]) not in given]


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", help="run folders, timed on a free machine")
    parser.add_argument("--untimed", type=Path, nargs="*", default=[], help="run folders, not so")
    parser.add_argument("--keep", action="store_true", help="the other rows of the report, too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    runs = [read_run(folder, timed=True) for folder in given.runs]
    runs += [read_run(folder, timed=False) for folder in given.untimed]
    if not runs:
        parser.error("no runs given")
    if given.keep:
        runs += _kept(given.out / "recipes.json", runs)
    runs.sort(key=lambda run: (run["recipe"], run["seed"]))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "recipes.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    (given.out / "recipes.md").write_text(page(runs), encoding="utf-8")
    draw(runs, given.out / "recipes.png")
    print(page(runs))


if __name__ == "__main__":
    main()
