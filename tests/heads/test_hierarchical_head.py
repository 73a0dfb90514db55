"""Hierarchical head: gradients as rows, its tree among the model's arrays, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm.heads import HeadOptions, Hierarchical
from pynlm.heads.hierarchical import stored_tree
from pynlm.heads.trees import Tree, balanced, frequency_classes, from_clusters, huffman
from pynlm.layers import Context, Parameters
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM, PROBABILITY_SUM, kernel_tolerance
from pynlm.train.config import OptimiserConfig
from pynlm.train.optimisers import gradient_norm, make_optimiser

N, H, V = 6, 3, 11
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((N, H))
COUNTS = 1000 // np.arange(1, V + 1)
TREES: dict[str, Tree] = {
    "huffman": huffman(COUNTS),
    "ternary": huffman(COUNTS, 3),
    "balanced": balanced(V),
    "classes": frequency_classes(COUNTS),
    "clusters": from_clusters([3, 1, 3, 2, 2, 1, 1, 3, 3, 3, 1]),
}
every_tree = pytest.mark.parametrize("tree", TREES)


def make(tree: str = "huffman", dtype: Any = np.float64) -> tuple[Hierarchical, Parameters]:
    p = Parameters(Hierarchical.specs("head", V, H), dtype)
    for q in p.values():
        q.data[...] = np.random.default_rng(1).standard_normal(q.data.shape)
    return Hierarchical(p, TREES[tree]), p


@every_tree
def test_only_the_rows_on_a_path_have_gradients(train: Context, tree: str) -> None:
    head, _ = make(tree)
    target = 4
    _, backprop = head(HIDDEN[:1], [target], train)
    assert backprop is not None and head.weight.state == "unset"
    backprop()
    first = head.tree.first
    path = [m for m, _ in head.tree.path(target)]
    rows = np.concatenate([np.arange(first[m] - m, first[m + 1] - m - 1) for m in path])
    assert head.weight.rows[0].tolist() == sorted(rows.tolist())
    assert len(rows) == head.tree.cost[target]
    with pytest.raises(RuntimeError, match="Hierarchical head: backprop may be called once"):
        backprop()


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adagrad"])
def test_an_update_of_rows_is_the_dense_one(train: Context, kind: str) -> None:
    """Two steps, on other rows, with decay: also what no path touched moves."""
    weights = []
    for dense in (False, True):
        head, parameters = make("huffman")
        optimiser = make_optimiser(
            OptimiserConfig(kind=kind, weight_decay=0.1),
            parameters,
        )
        for targets in ([0, 1, 2], [10, 0, 5]):
            parameters.zero_grad()
            _, backprop = head(HIDDEN[:3], targets, train)
            assert backprop is not None
            backprop(0.5)
            if dense:
                head.weight.densify()
            norm = gradient_norm(parameters)
            optimiser.step(lr=0.1, scale=1 / norm)
        weights.append(head.weight.data.copy())
    assert_close(weights[0], weights[1], CLOSED_FORM, what="weight")


@every_tree
def test_extreme_logits_that_add_up(score: Context, tree: str) -> None:
    """Biases of +-1e4 in both directions at every node."""
    head, _ = make(tree, np.float32)
    assert head.bias is not None
    head.weight.data.fill(0)
    for signs in np.random.default_rng(2).choice([-1e4, 1e4], (20, V - 1)):
        head.bias.data[...] = signs
        log_prob = head.log_prob(np.zeros((1, H), np.float32), score).astype(np.float64)
        assert np.isfinite(log_prob).all()
        assert_close(np.exp(log_prob).sum(), 1.0, PROBABILITY_SUM, what="sum of p")
        nll = [head(np.zeros((1, H), np.float32), [v], score)[0][0] for v in range(V)]
        assert_close(-log_prob[0], nll, kernel_tolerance("hsoftmax", "float32"), what="nll")


@every_tree
def test_the_chain_rule(score: Context, tree: str) -> None:
    """The nll is the sum over the path of what each node's own softmax says."""
    head, _ = make(tree)
    assert head.bias is not None
    nll, _ = head(HIDDEN, [3] * N, score)
    total = np.zeros(N)
    for m, child in head.tree.path(3):
        rows = slice(head.tree.first[m] - m, head.tree.first[m + 1] - m - 1)
        z = HIDDEN @ head.weight.data[rows].T + head.bias.data[rows]
        z = np.insert(z, 0, 0.0, axis=1)
        total += np.log(np.exp(z).sum(1)) - z[:, child]
    assert_close(nll, total, CLOSED_FORM, what="nll")


@pytest.mark.parametrize("kind", ["huffman", "balanced", "classes"])
def test_a_vocabulary_of_one_word(train: Context, kind: str) -> None:
    """It is certain, and there is nothing to learn but no error either."""
    config = RecurrentLMConfig(1, 3, (H,), head=HeadOptions(kind="hierarchical", tree=kind))
    model = RecurrentLM(config, np.float64, counts=[7])
    model.initialise(1)
    optimiser = make_optimiser(OptimiserConfig(kind="adam"), model.parameters)
    nll, _, backprop = model([[0], [0]], [[0], [0]], None, train)
    assert not nll.any() and backprop is not None
    backprop()
    assert gradient_norm(model.parameters) == 0.0
    optimiser.step(lr=0.1)
    log_prob, ids = model.head.top_k(HIDDEN, 1, train)
    assert not log_prob.any() and not ids.any() and not model.head.sample(HIDDEN, train).any()
    assert not model.log_prob(HIDDEN).any() and not model.head.entropy(HIDDEN, train).any()


def test_options_make_the_head() -> None:
    for tree, more in (
        ("huffman", {"arity": 3}),
        ("balanced", {"arity": 4}),
        ("classes", {"classes": 2}),
    ):
        options = HeadOptions(kind="hierarchical", tree=tree, **more)  # type: ignore[arg-type]
        assert HeadOptions.from_dict(options.to_dict()) == options
        parameters = Parameters(options.specs("head", V, H, bias=True, tied=False))
        head = options.make(parameters, None, counts=COUNTS)
        assert isinstance(head, Hierarchical)
        own = {
            "huffman": lambda: huffman(COUNTS, 3),
            "balanced": lambda: balanced(V, 4),
            "classes": lambda: frequency_classes(COUNTS, 2),
        }[tree]()
        assert (head.tree.children == own.children).all() and (head.tree.first == own.first).all()


def test_the_tree_is_saved_with_the_weights() -> None:
    config = RecurrentLMConfig(V, 3, (H,), head=HeadOptions(kind="hierarchical"))
    model = RecurrentLM(config, counts=COUNTS)
    model.initialise(1)
    state = {name: x.copy() for name, x in model.state_dict().items()}
    assert state["head.weight"].shape == (V - 1, H) and state["head.bias"].shape == (V - 1,)
    again = RecurrentLM(config, tree=stored_tree(state))
    again.load_state_dict(state)
    assert_same_bits(
        again.log_prob(HIDDEN.astype(np.float32)),
        model.log_prob(HIDDEN.astype(np.float32)),
        what="log_prob",
    )
    other = RecurrentLM(config, counts=COUNTS[::-1].copy())
    want, found = other.state_dict()["head.tree.children"], state["head.tree.children"]
    i = int(np.argmax(want != found))
    message = rf"head\.tree\.children .* with {want[i]} at \[{i}\], got {found[i]}"
    with pytest.raises(ValueError, match=f"RecurrentLM: {message}"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"children must be .*, int32 \[\d+\], got int32 \[3\]"):
        other.load_state_dict({**state, "head.tree.children": found[:3]})
    assert not other.parameters.data.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arity": 1}, r"arity must be in \[2, 1073741824\], got 1"),
        ({"classes": 0, "tree": "classes"}, r"classes must be in \[1, 1073741824\], got 0"),
        ({"tree": "oak"}, "tree must be one of huffman, balanced, classes, clusters, got 'oak'"),
        ({"classes": 3}, "classes is not defined for tree 'huffman', got 3"),
        ({"arity": 3, "tree": "classes"}, "arity is not defined for tree 'classes', got 3"),
        ({"tree": "clusters"}, "tree 'clusters' needs clusters, the file that has them"),
        ({"z_loss": 0.1}, "z_loss is not defined for kind 'hierarchical', got 0.1"),
        ({"kind": "full", "arity": 3}, "arity is not defined for kind 'full', got 3"),
    ],
)
def test_option_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^HeadOptions: {message}"):
        HeadOptions(**{"kind": "hierarchical", **options})


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {}, r"make_tree: tree 'huffman' needs counts \[V=11\]"),
        ({}, {"counts": COUNTS[1:]}, r"make_tree: counts must be of V=11 tokens, got \[10\]"),
        ({}, {"counts": -COUNTS}, r"huffman: counts must not be negative, got counts\[0\]"),
        (
            {"tree": "classes", "classes": 12},
            {"counts": COUNTS},
            r"frequency_classes: classes must be in \[1, 11\], got 12",
        ),
        (
            {},
            {"tree": balanced(10)},
            "Hierarchical head: tree must have V=11 tokens for a weight of 10 rows, got 10",
        ),
    ],
)
def test_what_a_tree_needs(options: dict[str, Any], given: dict[str, Any], message: str) -> None:
    config = RecurrentLMConfig(V, 3, (H,), head=HeadOptions(kind="hierarchical", **options))
    with pytest.raises(ValueError, match=f"^{message}"):
        RecurrentLM(config, **given)


def test_there_is_no_table_to_tie() -> None:
    with pytest.raises(ValueError, match="tied must be false for head kind 'hierarchical'"):
        RecurrentLMConfig(V, H, (H,), tied=True, head=HeadOptions(kind="hierarchical"))
