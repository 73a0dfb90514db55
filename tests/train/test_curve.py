"""The learning curve, the log, and a run on a machine without matplotlib."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pynlm.train import Trainer
from pynlm.train.curve import draw_curve
from pynlm.train.log import Reporter, RunLog, duration, perplexity, read_log


def write_log(path: Path, epochs: int = 3) -> None:
    log = RunLog(path)
    log.write("start", recipe="x")
    for step in range(1, 60 * epochs + 1):
        log.write("step", step=step, tokens=1000 * step, loss=7.0 / step**0.1)
        if step % 60 == 0:
            log.write("epoch", epoch=step // 60, tokens=1000 * step, valid_nats=6.9 / step**0.1)
    log.close()


def test_a_curve_is_drawn(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl")
    png = tmp_path / "curve.png"
    log = tmp_path / "log.jsonl"
    assert draw_curve(log, png, title="t", target=80.0, target_label="published") is None
    data = png.read_bytes()
    assert data[:4] == b"\x89PNG"
    assert len(data) > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "log.jsonl"]


@pytest.mark.parametrize("epochs", [0, 1])
def test_short_logs_are_drawn_or_left(tmp_path: Path, epochs: int) -> None:
    write_log(tmp_path / "log.jsonl", epochs)
    drawn = draw_curve(tmp_path / "log.jsonl", tmp_path / "curve.png", title="t")
    assert drawn == (None if epochs else "nothing has been logged yet")
    if epochs:
        missing = draw_curve(tmp_path / "log.jsonl", tmp_path / "no" / "curve.png", title="t")
        assert missing is not None
        assert "curve.png: No such file" in missing


def test_without_matplotlib_a_line_says_so(
    make: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pynlm.train.trainer.draw_curve", draw_curve)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    result = make(quiet=False, overrides={"train.epochs": 1}).run()
    assert "no curve.png: matplotlib is missing" in capsys.readouterr().out
    assert not (result.out / "curve.png").exists()


def test_the_log_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.write("step", step=1, loss=1.0)
    kept = log.sync()
    log.write("step", step=2, loss=float("nan"))
    log.close()
    assert [event["step"] for event in read_log(path)] == [1, 2]
    assert read_log(path)[1]["loss"] is None
    log = RunLog(path, kept)
    log.write("step", step=3)
    log.close()
    assert [event["step"] for event in read_log(path)] == [1, 3]
    with open(path, "ab") as file:
        file.write(b'{"event": "step", "st')
    assert [event["step"] for event in read_log(path)] == [1, 3]


def test_plain_progress_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("pynlm.train.log.time.monotonic", lambda: now[0])
    reporter = Reporter(quiet=False, total=1000, done=200)
    arguments: dict[str, Any] = {"label": "epoch 1/2", "loss": 5.0, "rate": 40.0}
    now[0] = 9.0
    reporter.step(tokens=300, **arguments)
    now[0] = 10.0
    reporter.step(tokens=600, **arguments)
    reporter.close()
    said = capsys.readouterr().out
    assert said == "epoch 1/2   60 %  loss 5.000  ppl 148.4  40 tokens/s  0:10 left\n"


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0.2, 75, 3661, -1)] == ["0:00", "1:15", "1:01:01", "0:00"]
    assert perplexity(1e4) == float("inf")
