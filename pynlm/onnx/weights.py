"""Weights of ONNX's recurrent operators as those of pynlm's layers, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pynlm.arrays import FLOAT32, Array, Dims, check
from pynlm.layers.convert import as_floats

# Blocks of rows, by ONNX's letters: theirs, then ours.
_GATES = {"LSTM": ("iofc", "ifco"), "GRU": ("zrh", "rzh"), "RNN": ("i", "i")}
_PEEPHOLES = ("iof", "ifo")


def weights_from_onnx(
    op: str,
    W: Any,
    R: Any,
    B: Any = None,
    P: Any = None,
    *,
    linear_before_reset: int = 0,
    input_forget: int = 0,
) -> list[dict[str, Array]]:
    """Weights of an ONNX LSTM, GRU or RNN node, as the parameters of pynlm's layers.

    Parameters
    ----------
    op
        "LSTM", "GRU" or "RNN".
    W, R, B, P
        The operator's inputs, float32 or float64, with G = 4 gates (LSTM), 3 (GRU) or 1 (RNN):
        W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H] or None, P [D, 3H] (LSTM only) or None.
        D is the number of directions, 1 or 2.
    linear_before_reset, input_forget
        The operator's attributes, 0 or 1.

    Returns
    -------
    list of dict
        One a direction, of copies: `w_ih` [G*H, I], `w_hh` [G*H, H], `b` [G*H] in pynlm's (and
        PyTorch's) order of gates, the sum of the operator's two biases. LSTM with P: `peephole`
        [3H]. GRU with linear_before_reset: `b_hn` [H], which stands inside the reset product and
        is left out of `b`; without it the reset gate applies before the product, and there is no
        `b_hn`. LSTM with input_forget: the forget gate is 1 - i, its rows are dropped from all.

    Raises
    ------
    TypeError
        Arrays of other or different dtypes.
    ValueError
        Another operator; shapes that do not fit; P or an attribute that the operator does not have.

    Notes
    -----
    Source: ONNX operator specification, LSTM, GRU and RNN, version 22 (the equations are those of
    versions 7 and 14).

    Examples
    --------
    >>> W, R = np.arange(4.0).reshape(1, 4, 1), np.zeros((1, 4, 1))
    >>> weights_from_onnx("LSTM", W, R)[0]["w_ih"][:, 0]  # i, o, f, c become i, f, g, o
    array([0., 2., 3., 1.])
    """
    func = "weights_from_onnx"
    gates = _gates(func, op, linear_before_reset, input_forget)
    arrays = {"W": W, "R": R, "B": B, "P": P}
    given = {name: as_floats(x, FLOAT32) for name, x in arrays.items() if x is not None}
    g, dims = len(_GATES[op][0]), Dims()
    # R first: it alone tells H.
    for name, spec in (("R", f"D {g}H H"), ("W", f"D {g}H I"), ("B", f"D {2 * g}H"), ("P", "D 3H")):
        if name in given or name in "WR":
            check(given.get(name), spec, dims, func=func, name=name)
    if dims["D"] > 2:
        raise ValueError(f"{func}: W must have 1 or 2 directions, got {dims['D']}")
    if P is not None and op != "LSTM":
        raise ValueError(f"{func}: P is for LSTM, {op} has no peepholes")
    found = []
    for d in range(dims["D"]):
        weights = {
            "w_ih": _reorder(given["W"][d], *gates),
            "w_hh": _reorder(given["R"][d], *gates),
        }
        biases = given["B"][d] if "B" in given else np.zeros(2 * g * dims["H"], dims["dtype"])
        b_w, b_r = (_reorder(half, *gates) for half in np.split(biases, 2))
        if op == "GRU" and linear_before_reset:
            h = dims["H"]
            weights["b_hn"] = b_r[2 * h :].copy()
            b_r[2 * h :] = 0
        weights["b"] = b_w + b_r
        if "P" in given:
            theirs, ours = _PEEPHOLES
            weights["peephole"] = _reorder(given["P"][d], theirs, _coupled(ours, input_forget))
        found.append(weights)
    return found


def weights_to_onnx(op: str, weights: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The inverse of `weights_from_onnx`: the operator's inputs W, R, B and (with peepholes) P.

    Parameters
    ----------
    op
        "LSTM", "GRU" or "RNN".
    weights
        One a direction, forward first, with the names and shapes that `weights_from_onnx` returns.
        `b_hn` decides about linear_before_reset, 3H instead of 4H rows about input_forget.

    Returns
    -------
    dict
        Copies. The second half of B is 0, but for `b_hn`. What the operator has and the layer has
        not (the forget gate's rows of coupled gates, the peepholes of the one direction that has
        none) is 0 too, and has no effect.

    Raises
    ------
    TypeError
        Arrays of other or different dtypes.
    ValueError
        Another operator; names missing or unknown; shapes that do not fit; directions of which only
        one has `b_hn`, or coupled gates.

    Examples
    --------
    >>> ours = {"w_ih": np.arange(3.0).reshape(3, 1), "w_hh": np.zeros((3, 1)), "b": np.zeros(3)}
    >>> weights_to_onnx("GRU", [ours])["W"][0, :, 0]  # r, z, n become z, r, h
    array([1., 0., 2.])
    """
    func = "weights_to_onnx"
    _gates(func, op)
    if not 1 <= len(weights) <= 2:
        raise ValueError(f"{func}: weights must be of 1 or 2 directions, got {len(weights)}")
    theirs, ours = _GATES[op]
    optional = {"LSTM": {"peephole"}, "GRU": {"b_hn"}, "RNN": set()}[op]
    dims: Dims = {}
    rows = set()
    for one in weights:
        if not {"w_ih", "w_hh", "b"} <= set(one) <= {"w_ih", "w_hh", "b"} | optional:
            names = ", ".join(["w_ih", "w_hh", "b", *(f"perhaps {name}" for name in optional)])
            raise ValueError(f"{func}: {op} has the weights {names}, got {', '.join(one)}")
        w_hh = np.asarray(one["w_hh"])
        coupled = op == "LSTM" and w_hh.ndim == 2 and w_hh.shape[0] == 3 * w_hh.shape[1]
        g = len(ours) - coupled
        shapes = {"w_hh": f"{g}H H", "w_ih": f"{g}H I", "b": f"{g}H", "b_hn": "H"}
        shapes["peephole"] = f"{g - 1}H"
        for name, spec in shapes.items():
            if name in one:
                check(one[name], spec, dims, func=func, name=name)
        rows.add(g)
    if len(rows) > 1:
        raise ValueError(f"{func}: both directions or none must have coupled gates")
    if len({"b_hn" in one for one in weights}) > 1:
        raise ValueError(f"{func}: both directions or none must have b_hn")
    ours = _coupled(ours, rows == {3} and op == "LSTM")
    stacks: dict[str, list[Array]] = {"W": [], "R": [], "B": []}
    for one in weights:
        stacks["W"].append(_reorder(one["w_ih"], ours, theirs))
        stacks["R"].append(_reorder(one["w_hh"], ours, theirs))
        b = _reorder(one["b"], ours, theirs)
        b_r = np.zeros_like(b)
        if "b_hn" in one:
            b_r[-dims["H"] :] = one["b_hn"]
        stacks["B"].append(np.concatenate([b, b_r]))
    if any("peephole" in one for one in weights):
        order = "".join(gate for gate in ours if gate in _PEEPHOLES[1])
        none = np.zeros(len(order) * dims["H"], dims["dtype"])
        stacks["P"] = [_reorder(one.get("peephole", none), order, _PEEPHOLES[0]) for one in weights]
    return {name: np.stack(arrays) for name, arrays in stacks.items()}


def _gates(
    func: str, op: str, linear_before_reset: int = 0, input_forget: int = 0
) -> tuple[str, str]:
    """ONNX's order of gates and ours."""
    if op not in _GATES:
        raise ValueError(f"{func}: op must be LSTM, GRU or RNN, got {op!r}")
    for name, value, cell in (
        ("linear_before_reset", linear_before_reset, "GRU"),
        ("input_forget", input_forget, "LSTM"),
    ):
        if value not in (0, 1):
            raise ValueError(f"{func}: {name} must be 0 or 1, got {value!r}")
        if value and op != cell:
            raise ValueError(f"{func}: {name} is for {cell}, got op {op!r}")
    theirs, ours = _GATES[op]
    return theirs, _coupled(ours, input_forget)


def _coupled(order: str, coupled: int) -> str:
    return order.replace("f", "") if coupled else order


def _reorder(x: Array, old: str, new: str) -> Array:
    """Blocks of rows in another order; what `new` lacks is dropped, what `old` lacks is 0."""
    blocks = dict(zip(old, np.split(x, len(old)), strict=True))
    return np.concatenate([blocks[g] if g in blocks else np.zeros_like(blocks["i"]) for g in new])
