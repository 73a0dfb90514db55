"""Runs with the hierarchical head: its trees by recipe, saved, resumed, loaded; bad clusters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm import LanguageModel
from pynlm.evaluate import evaluate_stream
from pynlm.heads import Hierarchical
from pynlm.heads.trees import Tree, balanced, frequency_classes, from_clusters, huffman
from pynlm.testing import assert_close
from pynlm.testing.tolerances import PROBABILITY_SUM
from pynlm.text import Tokenizer, read_clusters
from pynlm.train import RecipeError, Trainer, load_model
from pynlm.train.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from pynlm.train.config import apply_overrides, load_recipe

Make = Callable[..., Trainer]
WORDS = ["the", "cat", "dog", "sat", "on", "mat", "and", "ran", "far", "home"]


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    """Two levels of clusters of the texts' words, and of a word that they do not have."""
    path = tmp_path / "clusters.txt"
    lines = [f"{word} {'ab'[i % 2]} {i % 3}\n" for i, word in enumerate(WORDS)]
    path.write_text("".join([*lines, "\n", "zebra b 2\n"]), encoding="utf-8")
    return path


def same(a: Tree, b: Tree) -> bool:
    return np.array_equal(a.first, b.first) and np.array_equal(a.children, b.children)


@pytest.mark.parametrize("tree", ["huffman", "ternary", "balanced", "classes", "clusters"])
def test_a_run_with_each_tree(make: Make, tmp_path: Path, clusters: Path, tree: str) -> None:
    """It learns, and what it reports is the perplexity of a distribution that adds up to 1."""
    how: dict[str, Any] = {"head.kind": "hierarchical", "train.epochs": 12}
    how |= {f"model.dropout_{place}": 0.0 for place in ("input", "between", "output")}
    how["optimiser.weight_decay"] = 0.0
    if tree == "ternary":
        how["head.arity"] = 3
    elif tree != "huffman":
        how["head.tree"] = tree
    if tree == "clusters":
        how["head.clusters"] = str(clusters)
    trainer = make(overrides=how)
    result = trainer.run()
    assert result.valid is not None
    clusters.unlink()  # the run has what it needs
    model, tokenizer, _ = load_model(tmp_path / "run")
    head = model.head
    assert isinstance(head, Hierarchical)
    counts = tokenizer.counts
    if tree != "clusters":
        own = {
            "huffman": lambda: huffman(counts),
            "ternary": lambda: huffman(counts, 3),
            "balanced": lambda: balanced(len(counts)),
            "classes": lambda: frequency_classes(counts),
        }[tree]()
        assert same(head.tree, own)
    again = evaluate_stream(model, trainer.data.valid, tokenizer.eos_id, eos_id=tokenizer.eos_id)
    assert again.nats_per_token == result.valid.nats_per_token
    assert again.perplexity < 0.8 * result.unigram_perplexity
    lm = LanguageModel.load(tmp_path / "run")
    log_prob, _ = lm.step("the", lm.start())
    assert_close(np.exp(log_prob.astype(float)).sum(), 1.0, PROBABILITY_SUM, what="sum of p")
    assert math.isfinite(lm.perplexity("the cat sat\n")) and lm.generate("the", tokens=3)


def test_a_run_of_clusters_goes_on_without_their_file(
    make: Make, weights_of: Callable[..., str], tmp_path: Path, clusters: Path
) -> None:
    how = {"head.kind": "hierarchical", "head.tree": "clusters", "head.clusters": str(clusters)}
    make("whole", overrides=how).run()
    make("broken", overrides={**how, "train.epochs": 1}).run()
    clusters.unlink()
    make("broken", overrides={**how, "train.epochs": 3}, resume=True).run()
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "broken")


def test_a_tree_that_is_damaged(make: Make, tmp_path: Path) -> None:
    make(overrides={"head.kind": "hierarchical", "train.epochs": 1}).run()
    run = tmp_path / "run"
    snapshot = load_checkpoint(find_checkpoint(run))
    for name, message in (
        ("head.tree.first", "parameter 'head.tree.first' is missing"),
        ("head.tree.children", "Tree: children must be all of 12 tokens"),
    ):
        arrays = dict(snapshot.model)
        if name.endswith("first"):
            del arrays[name]
        else:
            arrays[name] = arrays[name] * 0
        save_checkpoint(run, replace(snapshot, model=arrays), best=True)
        with pytest.raises(CheckpointError, match=f"model.safetensors: .*{message}"):
            load_model(run)


def test_clusters_of_a_file(clusters: Path) -> None:
    """Whatever the order of its lines; <eos> and <unk> are by themselves."""
    tokens = ["<eos>", *WORDS[::-1], "<unk>"]
    tokenizer = Tokenizer(tokens, list(range(12, 0, -1)), "word")
    labels = read_clusters(clusters, tokenizer)
    assert labels.dtype == np.int32 and labels.shape == (12, 2)
    alone = {0, 11}
    for v in range(12):
        for w in range(12):
            i, j = (WORDS.index(tokens[x]) if x not in alone else None for x in (v, w))
            coarse = v == w if i is None or j is None else i % 2 == j % 2
            fine = v == w if i is None or j is None else i % 3 == j % 3
            assert (labels[v] == labels[w]).tolist() == [coarse, fine]
    lines = clusters.read_text().splitlines(keepends=True)
    clusters.write_text("".join(lines[::-1]))
    assert (read_clusters(clusters, tokenizer) == labels).all()
    assert same(from_clusters(labels), from_clusters(read_clusters(clusters, tokenizer)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the a\ncat a b\n", r"line 2: expected a token and 1 cluster, got 2"),
        ("the\n", r"line 1: expected a token and its clusters, got 0"),
        ("the a\nthe b\n", r"line 2: 'the' is given twice"),
        ("the a\ncat b\n", r"8 of 12 tokens have no cluster, 'dog' the first"),
        ("", "the file is empty"),
        (b"\xff\xfe a\n", "no UTF-8"),
    ],
)
def test_bad_clusters(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tokenizer = Tokenizer(["<eos>", *WORDS, "<unk>"], list(range(12, 0, -1)), "word")
    with pytest.raises(ValueError, match=rf"bad\.txt: {message}"):
        read_clusters(path, tokenizer)


def test_a_run_with_bad_clusters_leaves_nothing_behind(make: Make, tmp_path: Path) -> None:
    how = {"head.kind": "hierarchical", "head.tree": "clusters", "head.clusters": "/nowhere.txt"}
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.txt"):
        make(overrides=how).run()
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["head.arity=1"], RecipeError, r"head\.arity"),
        (["head.tree=oak"], RecipeError, r"head\.tree"),
        (["head.classes=0"], RecipeError, r"head\.classes"),
    ],
)
def test_bad_options_are_named(overrides: list[str], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        apply_overrides(load_recipe("default"), ["head.kind=hierarchical", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"head.kind": "hierarchical", "head.z_loss": 0.1}, "HeadOptions: z_loss is not defined"),
        ({"head.kind": "hierarchical", "head.tree": "clusters"}, "needs clusters, the file"),
        ({"head.tree": "classes"}, "HeadOptions: tree is not defined for kind 'full'"),
        (
            {"head.kind": "hierarchical", "model.tied": True, "model.hidden_sizes": [6]},
            "tied must be false for head kind 'hierarchical'",
        ),
    ],
)
def test_options_that_do_not_go_together(
    make: Make, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(overrides=overrides)
