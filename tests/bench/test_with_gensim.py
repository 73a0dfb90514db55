"""gensim's skip-gram as a peer: its tree is ours, and likelihoods agree on the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import hierarchical as bench
from bench.peers.with_gensim import SkipGram
from bench.timing import Budget, threads
from pynlm.heads.trees import huffman


def test_beside_gensim(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.zipf(1.5, 3000) % 70]
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(words[i : i + 30]) + "\n" for i in range(0, 3000, 30)))
    words_of = bench.count_words(path)
    theirs = SkipGram(path, words_of, 8)
    counts, cost = theirs.counts, theirs.tree.cost
    # trees of equal counts differ, what they cost does not
    assert (counts * cost).sum() == (counts * huffman(counts).cost).sum()
    with threads(1, []):
        rows = bench.beside_gensim(path, words_of, 8, Budget(0.01, least=1, most=1))
    assert [row["library"] for row in rows] == ["pynlm", "gensim"]
    assert all(row["vocabulary"] == len(counts) for row in rows)
