"""The comparison of heads: two tiny runs, and the page from made-up rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import heads

OWN, USERS = "adaptive, own cutoffs", "adaptive, users' cutoffs"
EQUAL, EPOCH = 4000, 9000


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """`bench(*arguments)`: the report's rows after a call, on a text of 40 words."""
    words = np.random.default_rng(0).zipf(1.5, (6000, 10)) % 40
    for name, rows in (("text", words[:5900]), ("test", words[5900:])):
        lines = [" ".join(f"w{i}" for i in row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    chosen = {heads.EXACT: (), USERS: ("head.kind=flat",), OWN: ("head.label_smoothing=0.1",)}
    monkeypatch.setattr(heads, "HEADS", chosen)

    def call(*arguments: str) -> list[dict[str, Any]]:
        small = ["--set", "model.embedding_size=8", "--set", "model.hidden_sizes=[8]"]
        small += ["--seconds", "0.004"]
        texts = ["--text", str(tmp_path / "text"), "--test", str(tmp_path / "test")]
        heads.main([*small, *texts, "--out", str(tmp_path / "report"), *arguments])
        found: list[dict[str, Any]] = json.loads((tmp_path / "report" / "heads.json").read_text())
        return found

    return call


def test_heads_are_trained_on_the_tokens_of_the_exact_one(
    bench: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    (exact,) = bench("--heads", heads.EXACT)
    points = [point["tokens"] for point in exact["points"]]
    assert exact["points"][-1]["seconds"] >= 0.004 and points == sorted(points)
    assert exact["step_tokens"] == 32 * 35 and exact["vocabulary"] == 42
    assert exact["peak_bytes"] > 1e7

    equal = bench("--heads", OWN, "--phase", "equal", "--seeds", "1", "2")
    assert [(row["name"], row["seed"]) for row in equal] == [
        (heads.EXACT, 1), (OWN, 1), (OWN, 2),
    ]  # fmt: skip
    for row in equal[1:]:
        assert [point["tokens"] for point in row["points"]] == points
        assert row["head"]["label_smoothing"] == 0.1
    losses = [row["points"][-1]["test"]["nats"] for row in equal]
    assert len(set(losses)) == 3

    # The same run, further: at the points that both have it was the same model.
    again = bench("--heads", OWN, "--seeds", "1")
    assert again[0] == exact and again[2] == equal[2]
    further = again[1]["points"]
    assert len(further) > len(points)
    assert [p["test"] for p in further[: len(points)]] == [p["test"] for p in equal[1]["points"]]
    # One token in twenty is held out.
    assert further[-1]["tokens"] == 5900 * 11 * 19 // 20 // (32 * 35) * (32 * 35)
    assert (tmp_path / "report" / "heads.png").stat().st_size > 5000


def test_a_head_that_fails_leaves_the_others(
    bench: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"head\.kind=flat.* failed"):
        bench("--phase", "equal", "--seeds", "1")
    rows = json.loads((tmp_path / "report" / "heads.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == [heads.EXACT, OWN]


def test_the_exact_head_comes_first(bench: Callable[..., list[dict[str, Any]]]) -> None:
    with pytest.raises(ValueError, match="run the head 'exact' first"):
        bench("--heads", OWN)


def row(name: str, seed: int, *perplexities: float, tokens: int = 500) -> dict[str, Any]:
    points = [
        {
            "tokens": at,
            "seconds": at / 100,
            "test": {
                "tokens": tokens, "unk_tokens": 7, "perplexity": x, "perplexity_without_unk": x - 1,
            },
        }
        for at, x in zip((EQUAL, EPOCH), perplexities, strict=False)
    ]  # fmt: skip
    return {
        "name": name,
        "seed": seed,
        "set": list(heads.HEADS[name]),
        "head": {"kind": "nce", "samples": 1024}
        if name == "NCE"
        else {"kind": "adaptive", "cutoffs": [20, 30]},
        "parameters": 1234,
        "vocabulary": 42,
        "step_tokens": 1120,
        "step_seconds": 0.01,
        "peak_bytes": 5 * 10**6 * seed,
        "points": points,
    }


def test_page() -> None:
    rows = [row(heads.EXACT, 1, 200.0), row(USERS, 1, 210.0), row(OWN, 2, 204.0, 104.0)]
    rows = heads.merged(rows, row(OWN, 1, 208.0, 108.0))
    assert [(r["name"], r["seed"]) for r in rows[2:]] == [(OWN, 1), (OWN, 2)]
    text = heads.page(rows)
    equal, epoch, _ = re.split(r"^## (?:.*epoch|Runs)$", text, flags=re.M)
    ours = "1,234 | 112,000 ± 0 | {} ± 0.0 | 10 | {} ± 2.83 | {} ± 2.83 |"
    name = f"| {OWN} | kind=adaptive (20, 30) | 2 | "
    assert name + ours.format("0.7", "206.00", "205.00") in equal
    assert name + ours.format("1.5", "106.00", "105.00") in epoch
    assert "| kind=adaptive cutoffs=[4000,20000] | 1 |" in equal
    assert "| exact |" in equal and "| exact |" not in epoch
    assert "not judged, that takes two seeds each" in equal and f"({OWN}: 2, {USERS}: 0)" in epoch
    rows[-1]["facts"] = {"CPU": "a fast one", "pynlm": "0.1", "other work": "took 1 %"}
    assert f"| {OWN} | 2 | a fast one |  | 0.1 |  | took 1 % |" in heads.page(rows)
    replaced = heads.merged(rows, row(OWN, 2, 300.0))
    assert len(replaced) == 4 and replaced[3]["points"][0]["test"]["perplexity"] == 300.0


def test_verdict() -> None:
    users = [row(USERS, 1, 200.0), row(USERS, 2, 204.0)]  # standard deviation 2.83
    assert "**not worse**" in heads.verdict([*users, row(OWN, 1, 204.0), row(OWN, 2, 205.0)], EQUAL)
    assert "**worse**" in heads.verdict([*users, row(OWN, 1, 205.0), row(OWN, 2, 206.0)], EQUAL)
    text = heads.verdict([*users, row(OWN, 1, 198.0), row(OWN, 2, 202.0)], EQUAL)
    assert "-2.00 (-0.99%)" in text and "is 2.83 (2 and 2 seeds)" in text
    # Only runs of the same length are compared.
    assert "not judged" in heads.verdict([*users, row(OWN, 1, 205.0, 99.0)], EPOCH)


def test_a_page_of_what_is_there_so_far() -> None:
    text = heads.page([row("NCE", 1, 200.0), row(OWN, 3, 204.0, 104.0)])
    assert "| NCE | kind=nce (samples=1024) | 1 |" in text
    assert "## 9,000 tokens\n" in text and "epoch" not in text
    with pytest.raises(ValueError, match="no rows"):
        heads.page([])


def test_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        heads.main(["--render", "--out", str(tmp_path)])
    assert "no rows in" in capsys.readouterr().err
    rows = [row(heads.EXACT, 1, 200.0), row(OWN, 2, 204.0, 104.0)]
    (tmp_path / "heads.json").write_text(json.dumps(rows), encoding="utf-8")
    heads.main(["--render", "--out", str(tmp_path)])
    assert (tmp_path / "heads.md").read_text(encoding="utf-8") == heads.page(rows)
    assert (tmp_path / "heads.png").stat().st_size > 5000
    assert json.loads((tmp_path / "heads.json").read_text(encoding="utf-8")) == rows


def test_perplexities_of_other_texts_do_not_stand_in_one_table() -> None:
    with pytest.raises(ValueError, match="different test texts"):
        heads.page([row(heads.EXACT, 1, 200.0), row(OWN, 1, 200.0, tokens=501)])
