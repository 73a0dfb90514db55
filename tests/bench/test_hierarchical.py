"""The hierarchical softmax beside the exact one: it runs, and the page from made-up figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import hierarchical as bench
from bench.cases import Softmax
from pynlm.heads.trees import huffman

EXACT = [
    {"case": bench.LARGE[-1].name, "head": head, "rows": rows, "tokens_per_second": rate,
     "over_exact": over}
    for head, rows, rate, over in (("exact", 0.0, 100.0, 1.0), ("Huffman tree", 13.2, 900.0, 9.0))
]  # fmt: skip
GENSIM = [
    {"library": library, "vocabulary": 81_000, "size": 100, "path": 10.25,
     "pairs_per_second": rate, "nodes_per_second": 10.25 * rate, "over_gensim": over}
    for library, rate, over in (("pynlm", 2e6, 2.0), ("gensim", 1e6, 1.0))
]  # fmt: skip


def test_neighbours() -> None:
    given, targets = bench.neighbours([[1, 2, 3], [4], [], [5, 6]])
    assert given.dtype == targets.dtype == np.int32
    pairs = list(zip(given.tolist(), targets.tolist(), strict=True))
    assert pairs == [(2, 1), (1, 2), (3, 2), (2, 3), (6, 5), (5, 6)]
    assert not bench.neighbours([[4]])[0].size


def test_read_ids(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b\n\nb b a\n")
    assert bench.read_ids(tmp_path / "text.txt", {"a": 0, "b": 1}) == [[0, 1], [], [1, 1, 0]]


def test_first_words(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a b\nc\nd e\nf\n")
    assert bench.first_words(tmp_path / "long.txt", 3, tmp_path).read_text() == "a b\nc\n"


def test_page() -> None:
    tables: dict[str, list[dict[str, Any]]] = {"exact": EXACT, "gensim": GENSIM}
    text = bench.render({"CPU": "Some CPU"}, tables, 2)
    assert "| CPU | Some CPU |" in text
    assert "| 1024,512,267000 | exact | all | 100 |  |  |  |" in text
    assert "| 1024,512,267000 | Huffman tree | 13.2 | 900 | 9.00× | 10× | **no** |" in text
    assert "| 81,000 | 100 | pynlm | 10.25 | 2,000,000 | 20.5 M | 2.00× | yes |" in text
    assert "| 81,000 | 100 | gensim | 10.25 | 1,000,000 | 10.2 M |  |  |" in text
    assert "Skip-gram" not in bench.render({}, {"exact": EXACT, "gensim": []}, 2)


def test_a_run_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYNLM_DATA", raising=False)
    monkeypatch.setattr(bench, "LARGE", [Softmax(5, 3, 50)])
    bench.main(["--seconds", "0.01", "--out", str(tmp_path)])
    values = json.loads((tmp_path / "hierarchical.json").read_text())
    assert [row["head"] for row in values["exact"]] == ["exact", "Huffman tree", "classes"]
    assert "no text" in values["facts"] and not values["gensim"]


def test_our_skip_gram_learns() -> None:
    """Pairs of a fixed order become likelier."""
    pairs = bench.neighbours([[0, 1, 2, 3] * 200])
    model = bench.SkipGram(huffman([4, 3, 2, 1]), 5)
    ctx = bench.Context(train=False)

    def loss() -> float:
        h, _ = model.input(pairs[0], ctx)
        return float(np.mean(model.head(h, pairs[1], ctx)[0]))

    before = loss()
    for _ in range(200):
        model.run(*pairs)
    assert loss() < 0.7 * before
