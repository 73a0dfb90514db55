"""gensim's skip-gram as a peer: its tree is ours, and so are likelihoods, pairs and updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import hierarchical as bench
from bench.peers.with_gensim import SkipGram
from bench.timing import Budget, threads
from pynlm.heads.trees import huffman


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.zipf(1.5, 3000) % 70]
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(words[i : i + 30]) + "\n" for i in range(0, 3000, 30)))
    return path


def test_beside_gensim(text: Path) -> None:
    words_of = bench.count_words(text)
    theirs = SkipGram(text, words_of, 8)
    counts, cost = theirs.counts, theirs.tree.cost
    # trees of equal counts differ, what they cost does not
    assert (counts * cost).sum() == (counts * huffman(counts).cost).sum()
    with threads(1, []):
        rows = bench.beside_gensim(text, words_of, 8, Budget(0.01, least=1, most=1))
    assert [row["library"] for row in rows] == ["pynlm", "gensim"]
    assert all(row["vocabulary"] == len(counts) for row in rows)


ROUNDING = 1e-7
SIGMOID = 0.01
"""How far gensim's may be off: 1000 entries for -6 to 6, entry (x + 6) * 83 rounded down."""


@pytest.mark.parametrize("lines", ["", "w1 w2 w3\nw2\n\nw3 w1 w1\n"])
def test_an_update_moves_both_tables_as_gensims(text: Path, lines: str) -> None:
    """At a rate so low that the order does not matter. In few lines each pair shows."""
    if lines:
        text.write_text(lines)
    theirs, rate = SkipGram(text, bench.count_words(text), 8), 1e-4
    ids = {word: i for i, word in enumerate(theirs.words)}
    given, targets = bench.neighbours(bench.read_ids(text, ids))
    own = bench.SkipGram(theirs.tree, 8, rate)
    rng, ours = np.random.default_rng(1), (own.input.weight.data, own.head.weight.data)
    for mine, other in zip(ours, theirs.weights(), strict=True):
        mine[...] = 0.3 * rng.standard_normal(mine.shape, np.float32)
        other[...] = mine
    before = [mine.copy() for mine in ours]

    # What sigmoids that are off by 1 would move, at most.
    reach = [np.zeros_like(mine) for mine in ours]
    for word, target in zip(given, targets, strict=True):
        nodes = len(ids) - 2 - theirs.model.wv.get_vecattr(theirs.words[target], "point")
        reach[0][word] += np.abs(before[1][nodes]).sum(axis=0)
        reach[1][nodes] += np.abs(before[0][word])

    theirs.model.train(
        corpus_file=str(text), total_words=int(theirs.counts.sum()), epochs=1,
        start_alpha=rate, end_alpha=rate,
    )  # fmt: skip
    own.run(given, targets)
    for mine, other, begun, far in zip(ours, theirs.weights(), before, reach, strict=True):
        moved, expected = mine - begun, other - begun
        assert np.abs(expected).max() > 3 * rate * SIGMOID * far.max()
        assert (np.abs(moved - expected) <= rate * SIGMOID * far + ROUNDING).all()
