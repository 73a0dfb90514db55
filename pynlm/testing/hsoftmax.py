"""Arguments of the hierarchical softmax's functions, see `arguments`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.heads.trees import Tree, balanced, frequency_classes, from_clusters, huffman

from .cases import Case

Arguments = dict[str, Any]


def tree_of(case: Case) -> Tree:
    """The case's tree."""
    size = case.dims["V"]
    zipf = 10_000 // np.arange(1, size + 1)
    labels = case.rng("clusters").integers(0, 4, (size, 3))
    return {
        "huffman": lambda: huffman(zipf),
        "ternary": lambda: huffman(zipf, 3),
        "balanced": lambda: balanced(size, 10),
        "classes": lambda: frequency_classes(zipf),
        "clusters": lambda: from_clusters(labels),
        "flat": lambda: from_clusters(np.arange(size)),
        "chain": lambda: huffman(2 ** np.arange(size)),
    }[case.options["tree"]]()


def forward(case: Case, dtype: Any) -> Arguments:
    """Of `hsoftmax_forward`."""
    targets = case.rng("targets").integers(0, case.dims["V"], case.dims["N"]).astype(np.int32)
    if case.options.get("targets") == "same":
        targets[:] = case.dims["V"] // 2
    path = {name: getattr(tree_of(case), name).copy() for name in ("first", "parent")}
    return {"nll": _empty(len(targets)), **_map(case), **path, "targets": targets}


def gradients(case: Case, dtype: Any) -> Arguments:
    """Of `hsoftmax_gradients`, with room for all rows that there can be."""
    made = forward(case, dtype)
    cost = int(tree_of(case).cost[made["targets"]].sum())
    N, H, room = case.dims["N"], case.dims["H"], min(len(made["w"]), cost)
    weighted = case.options.get("weights")
    return {
        **made,
        "dh": _empty(N, H),
        "rows": np.full(room, -7, np.int32),
        "drows": _empty(room, H),
        "db": None if made["b"] is None else _empty(room),
        "weights": case.rng("weights").normal(size=N) if weighted else None,
    }


def log_prob(case: Case, dtype: Any) -> Arguments:
    """Of `hsoftmax_log_prob`."""
    return {"log_prob": _empty(case.dims["N"], case.dims["V"]), **_distribution(case)}


def top_k(case: Case, dtype: Any) -> Arguments:
    """Of `hsoftmax_top_k`."""
    N, K = case.dims["N"], case.options.get("k", min(5, case.dims["V"]))
    ids = np.full((N, K), -7, np.int32)
    return {"log_prob": _empty(N, K), "ids": ids, **_distribution(case)}


def sample(case: Case, dtype: Any) -> Arguments:
    """Of `hsoftmax_sample`."""
    ids = np.full(case.dims["N"], -7, np.int32)
    return {"ids": ids, **_distribution(case), "seed": 3, "step": 5, "time": 7}


def _distribution(case: Case) -> Arguments:
    tree = tree_of(case)
    return {**_map(case), "first": tree.first.copy(), "children": tree.children.copy()}


def _map(case: Case) -> Arguments:
    """h, w and b, scaled so that logits are of order 1; or exact ones of +-1e4."""
    N, H, rows = case.dims["N"], case.dims["H"], case.dims["V"] - 1
    rng = case.rng("map")
    h, w, b = rng.normal(size=(N, H)), rng.normal(size=(rows, H)), rng.normal(size=rows)
    w *= case.options.get("weight_scale", 1.0) / np.sqrt(H)
    if case.options.get("logits") == "extreme":
        h, w = np.round(h), np.round(w * 8) / 8
        b = np.where(np.arange(rows) % 3, -1e4, 1e4)
    return {"h": h, "w": w, "b": b if case.options.get("bias", True) else None}


def _empty(*shape: int) -> npt.NDArray[np.float64]:
    return np.full(shape, np.nan)
