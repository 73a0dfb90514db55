"""The report of training runs, from made-up logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import runs

SECONDS = (10.0, 20.0, 70.0)
"""Of training steps at the ends of the epochs, of 1000 tokens each; validations take 2 s."""


def made_up(folder: Path, recipe: str, seed: int, perplexity: float, last: str = "finished") -> str:
    """A run folder."""
    folder = folder / f"{recipe}-{seed}"
    folder.mkdir()
    (folder / "config.toml").write_text("[figure]\nvalid = 121.39\n", encoding="utf-8")
    reached = {"perplexity": perplexity, "nats_per_token": 4.0, "bits_per_token": 6.0}
    events = [
        {"event": "start", "recipe": recipe, "seed": seed, "parameters": 1234},
        *(
            {
                "event": "epoch",
                "tokens": 1000 * i,
                "seconds": seconds,
                "valid_seconds": 2.0,
                "train_nats": 5.0,
                "valid_nats": 5.0 - i / 10,
                "tokens_per_second": 1000 * i / seconds,
            }
            for i, seconds in enumerate(SECONDS, start=1)
        ),
        {"event": last, "epochs": 3, "seconds": SECONDS[-1], "valid": reached, "test": reached},
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def test_rate_is_the_median_epoch_and_time_the_total(tmp_path: Path) -> None:
    run = Path(made_up(tmp_path, "zaremba-small", 1, 119.0))
    found = runs.read_run(run, timed=True)
    assert found["tokens_per_second"] == 100.0  # the last epoch was disturbed: 20
    assert found["seconds"] == 76.0
    assert found["curve"][-1] == [3000, 5.0, 4.7]
    untimed = runs.read_run(run, timed=False)
    assert untimed["tokens_per_second"] is None and untimed["seconds"] is None


def test_run_that_has_not_finished(tmp_path: Path) -> None:
    run = Path(made_up(tmp_path, "zaremba-small", 1, 119.0, last="stopped"))
    with pytest.raises(ValueError, match="zaremba-small-1 has not finished"):
        runs.read_run(run, timed=True)


def test_report_is_completed_run_by_run(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "report")]
    runs.main([made_up(tmp_path, "zaremba-small", 1, 119.0), *out])
    second = made_up(tmp_path, "zaremba-small", 2, 121.0)
    untimed = made_up(tmp_path, "gru-small", 1, 110.0)
    runs.main(["--keep", *out, second, "--untimed", untimed])
    text = (tmp_path / "report" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+-small) \| (\d) \|.*\| (\S+) \| (\S+) \|$", text, re.M)
    assert rows[:3] == [
        ("gru-small", "1", "–", "–"),
        ("zaremba-small", "1", "100", "1.3"),
        ("zaremba-small", "2", "100", "1.3"),
    ]
    mean = "| zaremba-small | 2 | 120.00 ± 1.41 | 120.00 ± 1.41 | 100 ± 0 | 1.3 ± 0.0 |"
    assert mean in text and "| gru-small | 1 | 110.00" not in text
    assert (tmp_path / "report" / "recipes.png").stat().st_size > 5000

    # A row of the same recipe and seed is replaced; without --keep the others go.
    (tmp_path / "again").mkdir()
    again = made_up(tmp_path / "again", "zaremba-small", 2, 125.0)
    runs.main(["--keep", again, *out])
    kept = json.loads((tmp_path / "report" / "recipes.json").read_text(encoding="utf-8"))
    assert [(run["recipe"], run["valid"]["perplexity"]) for run in kept] == [
        ("gru-small", 110.0),
        ("zaremba-small", 119.0),
        ("zaremba-small", 125.0),
    ]
    runs.main([again, *out])
    assert len(json.loads((tmp_path / "report" / "recipes.json").read_text(encoding="utf-8"))) == 1
