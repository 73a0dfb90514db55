"""word2vec's skip-gram with a hierarchical softmax in gensim, from a file of text: its fastest way.

No contender of the catalogue's cases: `bench.hierarchical` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gensim import __version__
from gensim.models import Word2Vec
from numpy.typing import NDArray

from pynlm.heads.trees import Tree

WORKERS, WINDOW = 1, 1
"""One core; each word predicts both its neighbours."""


class SkipGram:
    """The model over counted words; `run` trains it once through a file of them.

    Attributes
    ----------
    words
        The vocabulary, by id.
    counts
        int64 [V].
    tree
        gensim's Huffman tree as ours.
    """

    def __init__(self, path: Path, counts: Mapping[str, int], size: int) -> None:
        self._path = str(path)
        self.model = Word2Vec(
            vector_size=size,
            sg=1,
            hs=1,
            negative=0,
            sample=0,
            min_count=1,
            window=WINDOW,
            shrink_windows=False,
            workers=WORKERS,
        )
        self.model.build_vocab_from_freq(dict(counts))
        vectors = self.model.wv
        self.words: list[str] = vectors.index_to_key
        codes, points = (
            [vectors.get_vecattr(word, of) for word in self.words] for of in ("code", "point")
        )
        self.counts: NDArray[np.int64] = np.array([counts[word] for word in self.words])
        self.tree = _tree(codes, points)

    def run(self) -> None:
        """One pass over the text: a path down the tree, and back, for each pair of neighbours."""
        words = int(self.counts.sum())  # no more than that; for the learning rate
        self.model.train(corpus_file=self._path, total_words=words, epochs=1)

    def weights(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Vectors [V, H] of the words, and rows [V - 1, H] of `tree`'s nodes."""
        return self.model.wv.vectors, self.model.syn1[len(self.words) - 2 :: -1]

    def log_likelihood(self, sentence: list[str]) -> float:
        """Of each word after each of its neighbours, in nats, by gensim's table."""
        return float(self.model.score([sentence], total_sentences=1)[0])


def version() -> str:
    """gensim's."""
    return str(__version__)


def _tree(codes: list[Any], points: list[Any]) -> Tree:
    """Node m is gensim's V - 2 - m, whose sigmoid is the probability of code 0."""
    size = len(codes)
    children = np.empty(2 * (size - 1), np.int64)
    for word, (code, point) in enumerate(zip(codes, points, strict=True)):
        nodes = size - 2 - np.asarray(point, np.int64)
        below = np.append(size + nodes[1:], word)
        children[2 * nodes + 1 - np.asarray(code, np.int64)] = below
    return Tree(np.arange(0, 2 * size, 2), children)  # type: ignore[arg-type]
