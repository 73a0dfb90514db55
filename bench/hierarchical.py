"""The hierarchical softmax beside the exact one, and per core beside gensim's.

`python -m bench.hierarchical [--text FILE] [--words N] [--seconds S] [--out DIR]`. The first table
is the head's training pass on a large vocabulary with all threads: hidden states in, loss and all
gradients out. The second is word2vec's skip-gram with one thread each, on the same words of a text
(by default the novels in `PYNLM_DATA`, all of whose words are in the vocabulary) with the same tree
and width, by processor time: words are read from a file and looked up, and for each pair of
neighbours a vector is fetched, a path is walked down and back, and both tables are updated. gensim
does so pair by pair, skips nodes whose sigmoid is almost 0 or 1 and reads the rest from a table;
pynlm takes pairs in batches, and computes the loss, too. Writes DIR/hierarchical.json and
DIR/hierarchical.md. Wants an otherwise idle machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import page
from bench.cases import Softmax, zipf_counts
from bench.inputs import softmax_inputs
from bench.small_page import SmallPage, options
from bench.timing import Budget, Contest, Times, settle, threads
from pynlm import kernels
from pynlm.heads import Hierarchical
from pynlm.heads.trees import Tree, frequency_classes, huffman
from pynlm.layers import Context, Embedding, Parameters
from pynlm.train.config import OptimiserConfig
from pynlm.train.optimisers import make_optimiser

Array = NDArray[Any]
LARGE = [Softmax(1024, 256, 81_000), Softmax(1024, 512, 267_000)]
EXACT, HUFFMAN, CLASSES = "exact", "Huffman tree", "classes"
GOAL = 10.0
"""Rate over the exact head's, of a Huffman tree on the largest vocabulary."""

OURS, GENSIM = "pynlm", "gensim"
GENSIM_WAY = "`Word2Vec(sg=1, hs=1, negative=0, window=1, workers=1)` on a corpus file"
WIDTHS = (100, 200, 300)
WORDS = 500_000
LONGEST = 1000
"""Words of a line: gensim cuts longer ones, too."""
PAIRS = 2048
"""In a batch."""
AGREES = 0.03
"""Relative: gensim's logarithms come from a table of a thousand steps, rounded down."""

Row = dict[str, Any]


def large(case: Softmax, budget: Budget) -> list[Row]:
    """Tokens a second of the exact head and of two trees, with all threads."""
    given = softmax_inputs(case)
    counts, n = zipf_counts(case.V), case.N  # as targets are drawn
    out: dict[str, Array] = {"nll": np.empty(n, np.float32), "dh": np.empty_like(given.h)}
    full = {"dw": np.empty_like(given.w), "db": np.empty_like(given.b)}
    calls: dict[str, Callable[[], object]] = {
        EXACT: partial(
            kernels.xent_gradients, **out, **full, h=given.h, w=given.w, b=given.b,
            targets=given.targets,
        )
    }  # fmt: skip
    paths = {EXACT: 0.0}
    rows = {"rows": np.empty(case.V - 1, np.int32), "drows": full["dw"][1:], "db": full["db"][1:]}
    for name, tree in {HUFFMAN: huffman(counts), CLASSES: frequency_classes(counts)}.items():
        calls[name] = partial(
            kernels.hsoftmax_gradients, **out, **rows, h=given.h, w=given.w[1:], b=given.b[1:],
            first=tree.first, parent=tree.parent, targets=given.targets,
        )  # fmt: skip
        paths[name] = float(tree.cost[given.targets].mean())
    seconds = Contest(calls).run(budget)
    medians = {name: Times.of(values).median for name, values in seconds.items()}
    return [
        {
            "case": case.name,
            "head": name,
            "rows": paths[name],
            "seconds": medians[name],
            "tokens_per_second": n / medians[name],
            "over_exact": medians[EXACT] / medians[name],
        }
        for name in calls
    ]


class SkipGram:
    """The same in pynlm: an embedding, the head on its output, SGD on the rows of both."""

    def __init__(self, tree: Tree, size: int, rate: float = 0.001) -> None:
        specs = [
            *Embedding.specs("input", tree.vocab_size, size),
            *Hierarchical.specs("head", tree.vocab_size, size, bias=False),
        ]
        self.parameters = Parameters(specs)
        self.input = Embedding(self.parameters, "input")
        self.head = Hierarchical(self.parameters, tree)
        # as word2vec begins; the rate suits sums over a batch
        data = self.input.weight.data
        data[...] = (np.random.default_rng(1).random(data.shape, np.float32) - 0.5) / size
        self._optimiser = make_optimiser(OptimiserConfig(kind="sgd"), self.parameters)
        self._rate = rate

    def run(self, given: Array, targets: Array) -> None:
        """One pass over all pairs."""
        ctx = Context(train=True)
        for i in range(0, len(given), PAIRS):
            self.parameters.zero_grad()
            h, back = self.input(given[i : i + PAIRS], ctx)
            _, backprop = self.head(h, targets[i : i + PAIRS], ctx)
            assert back is not None and backprop is not None
            back(backprop())
            self._optimiser.step(lr=self._rate)


def neighbours(lines: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Given words and their targets, int32: each word after each of its neighbours in a line."""
    words = np.fromiter(chain.from_iterable(lines), np.int32)
    line = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
    same = line[1:] == line[:-1]
    pairs = np.stack([words[:-1][same], words[1:][same]], axis=1)
    return pairs[:, ::-1].ravel(), pairs.ravel()


def read_ids(path: Path, ids: Mapping[str, int]) -> list[list[int]]:
    """The ids of each line's words."""
    with open(path, encoding="utf-8") as file:
        return [[ids[word] for word in line.split()] for line in file]


def beside_gensim(path: Path, counts: Mapping[str, int], size: int, budget: Budget) -> list[Row]:
    """Rates of both with one thread each, after a check that they mean the same by a tree."""
    from bench.peers.with_gensim import SkipGram as Theirs

    theirs = Theirs(path, counts, size)
    ids = {word: i for i, word in enumerate(theirs.words)}
    own = SkipGram(theirs.tree, size)
    longest = max(read_ids(path, ids), key=len)
    _check(theirs, own, [theirs.words[i] for i in longest], longest)

    def ours() -> None:
        # gensim's call reads the file, too
        own.run(*neighbours(read_ids(path, ids)))

    medians = _cpu_seconds({OURS: ours, GENSIM: theirs.run}, budget)
    _, targets = neighbours(read_ids(path, ids))
    nodes, pairs = float(theirs.tree.cost[targets].sum()), len(targets)
    return [
        {
            "library": name,
            "vocabulary": len(ids),
            "size": size,
            "path": nodes / pairs,
            "pairs_per_second": pairs / medians[name],
            "nodes_per_second": nodes / medians[name],
            "over_gensim": medians[GENSIM] / medians[name],
        }
        for name in medians
    ]


def _cpu_seconds(calls: dict[str, Callable[[], None]], budget: Budget) -> dict[str, float]:
    """Median of each contender's processor time, in turns: they have one thread each."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    while not budget.enough(len(found[OURS]), time.perf_counter() - begun):
        for name, call in calls.items():
            settle()
            before = time.process_time()
            call()
            found[name].append(time.process_time() - before)
    return {name: median(seconds) for name, seconds in found.items()}


def _check(theirs: Any, own: SkipGram, sentence: list[str], ids: Sequence[int]) -> None:
    """Raise AssertionError unless the same weights give the same likelihood in both."""
    weights = theirs.weights()
    began = [w.copy() for w in weights]
    rng, size = np.random.default_rng(2), own.input.weight.data.shape[1]
    for w, scale in zip(weights, (size**-0.5, 1.0), strict=True):
        w[...] = rng.standard_normal(w.shape, np.float32) * np.float32(scale)
    own.head.weight.data[...] = weights[1]
    given, targets = neighbours([ids])
    nll, _ = own.head(np.ascontiguousarray(weights[0][given]), targets, Context(train=False))
    want, got = theirs.log_likelihood(sentence), -float(nll.sum())
    assert abs(got - want) <= AGREES * abs(want), f"log-likelihood {got}, gensim's {want}"
    for w, begun in zip(weights, began, strict=True):
        w[...] = begun
    own.head.weight.data.fill(0)


def count_words(text: Path) -> Counter[str]:
    """How often each word of a text occurs."""
    with open(text, encoding="utf-8") as file:
        return Counter(word for line in file for word in line.split())


def first_words(text: Path, count: int, folder: Path) -> Path:
    """A file of the first lines of a text that have so many words; long ones are cut."""
    path = folder / "text.txt"
    with open(text, encoding="utf-8") as source, open(path, "w", encoding="utf-8") as file:
        for line in source:
            if count <= 0:
                break
            words = line.split()
            count -= len(words)
            for i in range(0, len(words), LONGEST):
                file.write(" ".join(words[i : i + LONGEST]) + "\n")
    return path


def render(facts: dict[str, str], tables: dict[str, list[Row]], n: int) -> str:
    """The page."""
    exact = [
        [
            row["case"],
            row["head"],
            f"{row['rows']:.1f}" if row["rows"] else "all",
            f"{row['tokens_per_second']:,.0f}",
            page.times(row["over_exact"]) if row["head"] != EXACT else "",
            *_goal(row),
        ]
        for row in tables["exact"]
    ]
    parts = [
        f"Loss and gradients of N rows of H over V words with {page.threads(n)}, targets by Zipf's "
        "law.",
        page.table(
            ["N,H,V", "head", "rows a token", "tokens/s", "over exact", "goal", "met"], exact
        ),
    ]
    if tables["gensim"]:
        rows = [
            [
                f"{row['vocabulary']:,}",
                str(row["size"]),
                row["library"],
                f"{row['path']:.2f}",
                f"{row['pairs_per_second']:,.0f}",
                f"{row['nodes_per_second'] / 1e6:.1f} M",
                page.times(row["over_gensim"]) if row["library"] == OURS else "",
                page.met(row["over_gensim"] >= 1) if row["library"] == OURS else "",
            ]
            for row in tables["gensim"]
        ]
        head = ["V", "width", "", "nodes a pair", "pairs/s", "nodes/s", "over gensim", "at least 1"]
        parts += [
            "Skip-gram with one thread each, same words and tree, by processor time: the file is "
            "read and its words looked up; vector, path and update of both tables, for each word "
            "after each of its neighbours. gensim: "
            f"{GENSIM_WAY}; pynlm: batches of {PAIRS:,} pairs, loss included.",
            page.table(head, rows),
        ]
    return page.small("Hierarchical softmax", facts, parts, "hierarchical")


def _goal(row: Row) -> list[str]:
    if row["head"] != HUFFMAN or row["case"] != LARGE[-1].name:
        return ["", ""]
    return [f"{GOAL:g}×", page.met(row["over_exact"] >= GOAL)]


def default_text() -> Path | None:
    """The novels' training text, if `PYNLM_DATA` says where it is."""
    folder = os.environ.get("PYNLM_DATA")
    path = None if folder is None else Path(folder) / "novels" / "novels.train.txt"
    return path if path is not None and path.is_file() else None


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = options("hierarchical", __doc__, 8.0, "case")
    parser.add_argument("--text", type=Path, default=default_text(), help="for the second table")
    parser.add_argument("--words", type=int, default=WORDS, help=f"of it (default {WORDS:,})")
    given = parser.parse_args(arguments)
    budget, report = Budget(given.seconds, least=3), SmallPage("hierarchical")
    facts = report.facts
    tables: dict[str, list[Row]] = {"exact": [], "gensim": []}
    for case in LARGE:
        tables["exact"] += large(case, budget)
    if given.text is None:
        facts["no text"] = "PYNLM_DATA is not set: nothing to measure gensim on"
    elif find_spec("gensim") is None:
        facts["not installed"] = "gensim"
    else:
        from bench.peers.with_gensim import version

        facts["gensim"] = version()
        with tempfile.TemporaryDirectory() as folder, threads(1, []):
            path = first_words(given.text, given.words, Path(folder))
            counts = count_words(given.text)
            for size in WIDTHS:
                tables["gensim"] += beside_gensim(path, counts, size, budget)
    report.write(given.out, tables, lambda facts, n: render(facts, tables, n))


if __name__ == "__main__":
    main()
