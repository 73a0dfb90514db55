"""Report finished training runs: `python -m bench.runs RUN... [--untimed RUN...] [--out DIR]`.

Reads `log.jsonl` and `config.toml` of run folders and writes DIR/recipes.md, recipes.json and
recipes.png. `make recipes` trains the runs of the report first.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
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
        "tokens_per_second": epochs[-1]["tokens_per_second"] if timed else None,
        "seconds": end["seconds"] if timed else None,
        "curve": [
            [e["tokens"], e["train_nats"], e["valid_nats"]] for e in epochs if "valid_nats" in e
        ],
    }


def _number(x: float | None, form: str) -> str:
    return "–" if x is None else format(x, form)


def page(runs: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    lines = [
        "# Recipes, trained",
        "",
        "Validation and test score each token once, as one stream with carried state. Rates and "
        "times are of two cores and count validation; runs without them shared the machine with "
        "other work. The same seed gives the same figures on any number of threads.",
        "",
        "| recipe | seed | parameters | epochs | valid | test | bits a token (test, else valid) "
        "| published valid / test | tokens/s | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        test, figure = run["test"], run["figure"]
        metric = figure.get("metric", "perplexity")
        unit = " nats" if metric == "nats_per_token" else ""
        published = " / ".join(_number(figure.get(k), "g") for k in ("valid", "test"))
        minutes = None if run["seconds"] is None else run["seconds"] / 60
        lines.append(
            f"| {run['recipe']} | {run['seed']} | {run['parameters']:,} | {run['epochs']} "
            f"| {run['valid'][metric]:.4g}{unit} "
            f"| {_number(test and test[metric], '.4g')}{unit if test else ''} "
            f"| {(test or run['valid'])['bits_per_token']:.4f} | {published}{unit} "
            f"| {_number(run['tokens_per_second'], ',.0f')} | {_number(minutes, '.1f')} |"
        )
    recipes = dict.fromkeys(run["recipe"] for run in runs)
    for recipe in recipes:
        same = [run for run in runs if run["recipe"] == recipe]
        if len(same) > 1 and all(run["test"] for run in same):
            parts = []
            for split in ("valid", "test"):
                values = [run[split]["perplexity"] for run in same]
                parts.append(f"{split} {mean(values):.2f} ± {stdev(values):.2f}")
            lines += ["", f"Mean of {len(same)} seeds of {recipe}: {', '.join(parts)}."]
    return "\n".join([*lines, "", "![validation by tokens read](recipes.png)", ""])


def draw(runs: list[dict[str, Any]], png: Path) -> None:
    """Validation loss against tokens read, one line a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    recipes = list(dict.fromkeys(run["recipe"] for run in runs))
    for run in runs:
        colour = f"C{recipes.index(run['recipe'])}"
        first = run is next(r for r in runs if r["recipe"] == run["recipe"])
        axes.plot(
            [tokens / 1e6 for tokens, _, _ in run["curve"]],
            [valid for _, _, valid in run["curve"]],
            "o-",
            color=colour,
            ms=3,
            lw=1.2,
            label=run["recipe"] if first else None,
        )
    axes.set_xlabel("tokens read (millions)")
    axes.set_ylabel("validation, nats a token")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(png, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", help="run folders, timed on a free machine")
    parser.add_argument("--untimed", type=Path, nargs="*", default=[], help="run folders, not so")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    runs = [read_run(folder, timed=True) for folder in given.runs]
    runs += [read_run(folder, timed=False) for folder in given.untimed]
    if not runs:
        parser.error("no runs given")
    runs.sort(key=lambda run: (run["recipe"], run["seed"]))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "recipes.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    (given.out / "recipes.md").write_text(page(runs), encoding="utf-8")
    draw(runs, given.out / "recipes.png")
    print(page(runs))


if __name__ == "__main__":
    main()
