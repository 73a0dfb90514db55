"""Training beside busy processes: they come and go, and the page from made-up figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bench import load, ours
from bench.cases import Train

TORCH = "torch"
FIGURES: load.Figures = {
    ours.NAME: {0: [0.01, 0.01, 0.01], 1: [0.02, 0.02, 0.08], 2: [0.05, 0.05, 0.05]},
    TORCH: {0: [0.02], 1: [0.2], 2: [0.3]},
}


def test_competitors_run_until_the_block_ends() -> None:
    found: list[subprocess.Popen[bytes]] = []

    def fails() -> None:
        with load.competitors(2) as processes:
            found.extend(processes)
            assert [process.poll() for process in processes] == [None, None]
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert len(found) == 2
    assert all(process.returncode is not None for process in found)
    with load.competitors(0) as none:
        assert none == []


def test_summary() -> None:
    found = load.summary(FIGURES)[ours.NAME]
    assert found[0]["slower"] == 1
    assert found[1]["slower"] == pytest.approx(2)
    assert found[1]["slower_mean"] == pytest.approx(4)
    assert found[1]["steps"] == 3


def test_page() -> None:
    def text(threads: int) -> str:
        return load.render({"CPU": "Some CPU"}, load.CASE, load.summary(FIGURES), threads)

    assert "| CPU | Some CPU |" in text(2)
    assert "| pynlm | 0 | 10 ms | 3 |  |  |  |  |" in text(2)
    assert "| pynlm | 1 | 20 ms | 3 | 2.00× | 2.5× | yes | 4.00× |" in text(2)
    assert "| pynlm | 2 | 50 ms | 3 | 5.00× | 4× | **no** | 5.00× |" in text(2)
    assert "| torch | 1 | 200 ms | 1 | 10.00× |  |  | 10.00× |" in text(2)
    # The bars are for two CPUs.
    assert "| pynlm | 1 | 20 ms | 3 | 2.00× |  |  | 4.00× |" in text(8)


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "CASE", Train("zaremba-small").smoke())
    monkeypatch.setattr(load, "available", lambda _: [])
    load.main(["--seconds", "0.01", "--out", str(tmp_path)])
    values = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    (found,) = values["steps"].values()
    assert list(found) == ["0", "1", "2"]
    assert all(figures["median"] > 0.0 for figures in found.values())
    assert (tmp_path / "load.md").is_file()
