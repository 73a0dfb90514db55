"""Turn a case into the keyword arguments of a kernel function.

Outputs are filled with NaN (or -7), so an element that a kernel forgets to write shows up; so is
what a kernel must ignore: saved arrays and upstream gradients beyond a row's length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm import reference
from pynlm.kernels import Variant

from . import candidates, hsoftmax
from .cases import CASES, XENT_OPTIONS, Case

Array = npt.NDArray[Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Function:
    """What the checks must know about a kernel function.

    Parameters
    ----------
    kernel
        Basename.
    writes
        Arguments that it writes (or rewrites).
    unspecified
        Written arguments whose steps beyond a row's length are unspecified.
    rows
        Takes a row-sparse gradient.
    """

    kernel: str
    make: Callable[[Case, Any], Arguments]
    writes: tuple[str, ...]
    unspecified: tuple[str, ...] = ()
    rows: bool = False

    @property
    def cases(self) -> list[Case]:
        """The cases of the kernel that are this function's (tables go to the *_rows functions)."""
        return [case for case in CASES[self.kernel] if ("rows" in case.options) == self.rows]


def arguments(function: str, case: Case, dtype: Any) -> Arguments:
    """Return fresh keyword arguments of `function` for `case`, floats in `dtype`."""
    made = FUNCTIONS[function].make(case, np.dtype(dtype))
    return {
        name: np.ascontiguousarray(value, dtype=dtype)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else value
        for name, value in made.items()
    }


def empty(*shape: int) -> Array:
    """An output array, filled with NaN."""
    return np.full(shape, np.nan)


def lengths_of(case: Case) -> Array | None:
    """The case's `lengths` argument."""
    lengths = case.options.get("lengths")
    return None if lengths is None else np.array(lengths, np.int32)


def beyond(case: Case) -> Array:
    """bool [T, B]: steps after a row's last one."""
    T, B = case.dims["T"], case.dims["B"]
    lengths = lengths_of(case)
    if lengths is None:
        return np.zeros((T, B), bool)
    mask: Array = np.arange(T)[:, None] >= lengths[None, :]
    return mask


def _recurrent(case: Case, gates: int, cell_state: bool) -> tuple[Arguments, Arguments]:
    """Inputs of the forward function, and the upstream gradients."""
    T, B, I, H = (case.dims[k] for k in "TBIH")
    P = case.options.get("projection", H)
    rng = case.rng("recurrent")
    scale = case.options.get("weight_scale", 1.0)
    inputs = {
        "x": rng.normal(size=(T, B, I)),
        "h0": rng.uniform(-0.9, 0.9, (B, P)),
        "w_ih": rng.normal(size=(gates * H, I)) * (scale / np.sqrt(I)),
        "w_hh": rng.normal(size=(gates * H, P)) * (scale * 0.8 / np.sqrt(P)),
        "b": rng.normal(size=gates * H) * 0.5,
        "lengths": lengths_of(case),
    }
    upstream = {"dy": rng.normal(size=(T, B, P)), "dh_last": rng.normal(size=(B, P))}
    inputs["x"][beyond(case)] = upstream["dy"][beyond(case)] = np.nan
    options = case.options
    if options.get("mask_h"):
        inputs["mask_h"] = rng.choice([0.0, 1.5], (B, P))
    if options.get("peephole"):
        inputs["peephole"] = rng.normal(size=(gates - 1) * H) * 0.5
    if options.get("projection"):
        inputs["w_hr"] = rng.normal(size=(P, H)) / np.sqrt(H)
    if options.get("layer_norm"):
        inputs["ln_gates"] = rng.uniform(0.5, 1.5, (2, gates * H))
    if options.get("layer_norm") and cell_state:
        inputs["ln_cell"] = rng.uniform(0.5, 1.5, (2, H))
    inputs["variant"] = _variant(case)
    if cell_state:
        inputs["c0"] = rng.normal(size=(B, H))
        upstream["dc_last"] = rng.normal(size=(B, H))
    return inputs, upstream


def _variant(case: Case) -> Variant | None:
    names = (
        "zoneout_h",
        "zoneout_c",
        "clip_h",
        "clip_c",
        "sample",
        "time0",
        "coupled",
        "norm_state",
    )
    chosen = {name: case.options[name] for name in names if name in case.options}
    if not chosen:
        return None
    rows = None
    if case.options.get("row_ids"):
        rows = case.rng("rows").permutation(case.dims["B"]).astype(np.int32)
    return Variant(**chosen, seed=12345, step=678, layer=1, rows=rows)


def _saved(case: Case, gates: int) -> Arguments:
    """What variants save."""
    T, B, H = (case.dims[k] for k in "TBH")
    options, lstm = case.options, case.kernel == "lstm"
    saved: Arguments = {}
    if options.get("mask_h"):
        saved["h_in"] = empty(T, B, options.get("projection", H))
    if options.get("projection"):
        saved["m"] = empty(T, B, H)
    if options.get("layer_norm"):
        saved["norm"] = empty(2, T, B, gates * H)
        saved["rstd"] = empty(3 if lstm else 2, T, B)
    if options.get("layer_norm") and lstm:
        saved["norm_c"] = empty(T, B, H)
    return saved


def _variant_gradients(inputs: Arguments) -> Arguments:
    """Gradients of the variants' weights."""
    names = ("peephole", "w_hr", "ln_gates", "ln_cell")
    return {f"d{name}": empty(*inputs[name].shape) for name in names if name in inputs}


def _rounded(given: Arguments, dtype: Any) -> Arguments:
    """Round floats to `dtype`, kept in float64: what the oracle of a narrower type starts from."""
    return {
        name: value.astype(dtype).astype(np.float64)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else value
        for name, value in given.items()
    }


def _lstm_forward(case: Case, dtype: Any) -> Arguments:
    T, B, H = (case.dims[k] for k in "TBH")
    gates, P = _lstm_gates(case), case.options.get("projection", H)
    inputs, _ = _recurrent(case, gates, True)
    saved = {"gates": empty(T, B, gates * H), "c": empty(T, B, H), **_saved(case, gates)}
    return {"y": empty(T, B, P), "h_last": empty(B, P), "c_last": empty(B, H), **saved, **inputs}


def _lstm_gates(case: Case) -> int:
    return 3 if case.options.get("coupled") else 4


def _lstm_backward(case: Case, dtype: Any) -> Arguments:
    T, B, I, H = (case.dims[k] for k in "TBIH")
    forward = _rounded(_lstm_forward(case, dtype), dtype)
    reference.lstm_forward(**forward)
    kept = {name: forward[name] for name in forward if name not in ("h_last", "c_last", "b")}
    gates, P = _lstm_gates(case), case.options.get("projection", H)
    return {
        "dx": empty(T, B, I),
        "dh0": empty(B, P),
        "dc0": empty(B, H),
        "dw_ih": empty(gates * H, I),
        "dw_hh": empty(gates * H, P),
        "db": empty(gates * H),
        **_variant_gradients(forward),
        **kept,
        **_recurrent(case, gates, True)[1],
    }


def _gru_inputs(case: Case) -> tuple[Arguments, Arguments]:
    inputs, upstream = _recurrent(case, 3, False)
    b_hn = case.rng("b_hn").normal(size=case.dims["H"])
    inputs["b_hn"] = None if case.options.get("reset_before") else b_hn
    return inputs, upstream


def _gru_forward(case: Case, dtype: Any) -> Arguments:
    T, B, H = (case.dims[k] for k in "TBH")
    saved = {"gates": empty(T, B, 3 * H), "hn": empty(T, B, H), **_saved(case, 3)}
    return {"y": empty(T, B, H), "h_last": empty(B, H), **saved, **_gru_inputs(case)[0]}


def _gru_backward(case: Case, dtype: Any) -> Arguments:
    T, B, I, H = (case.dims[k] for k in "TBIH")
    forward = _rounded(_gru_forward(case, dtype), dtype)
    reference.gru_forward(**forward)
    kept = {name: forward[name] for name in forward if name not in ("h_last", "b", "b_hn")}
    return {
        "dx": empty(T, B, I),
        "dh0": empty(B, H),
        "dw_ih": empty(3 * H, I),
        "dw_hh": empty(3 * H, H),
        "db": empty(3 * H),
        "db_hn": None if forward["b_hn"] is None else empty(H),
        **_variant_gradients(forward),
        **kept,
        **_gru_inputs(case)[1],
    }


def _rnn_forward(case: Case, dtype: Any) -> Arguments:
    T, B, H = (case.dims[k] for k in "TBH")
    inputs, _ = _recurrent(case, 1, False)
    nonlinearity = case.options["nonlinearity"]
    outputs = {"y": empty(T, B, H), "h_last": empty(B, H), **_saved(case, 1)}
    return {**outputs, **inputs, "nonlinearity": nonlinearity}


def _rnn_backward(case: Case, dtype: Any) -> Arguments:
    T, B, I, H = (case.dims[k] for k in "TBIH")
    forward = _rounded(_rnn_forward(case, dtype), dtype)
    reference.rnn_forward(**forward)
    kept = {name: forward[name] for name in forward if name not in ("h_last", "b")}
    return {
        "dx": empty(T, B, I),
        "dh0": empty(B, H),
        "dw_ih": empty(H, I),
        "dw_hh": empty(H, H),
        "db": empty(H),
        "dpre": empty(T, B, H),
        **_variant_gradients(forward),
        **kept,
        **_recurrent(case, 1, False)[1],
    }


def _affine(case: Case, rows: str, inner: str, outer: str) -> tuple[Array, Array, Array | None]:
    """x [rows, inner], w [outer, inner] and b [outer], scaled so that products are of order 1."""
    n, i, o = (case.dims[k] for k in (rows, inner, outer))
    rng = case.rng("affine")
    scale = case.options.get("weight_scale", 1.0)
    x, w, b = rng.normal(size=(n, i)), rng.normal(size=(o, i)), rng.normal(size=o)
    return x, w * (scale / np.sqrt(i)), b if case.options.get("bias", True) else None


def _linear_forward(case: Case, dtype: Any) -> Arguments:
    x, w, b = _affine(case, "N", "I", "O")
    return {"y": empty(case.dims["N"], case.dims["O"]), "x": x, "w": w, "b": b}


def _linear_backward(case: Case, dtype: Any) -> Arguments:
    x, w, b = _affine(case, "N", "I", "O")
    dy = case.rng("dy").normal(size=(case.dims["N"], case.dims["O"]))
    db = None if b is None else empty(*b.shape)
    return {"dx": empty(*x.shape), "dw": empty(*w.shape), "db": db, "dy": dy, "x": x, "w": w}


def _xent_inputs(case: Case) -> Arguments:
    N, V = case.dims["N"], case.dims["V"]
    h, w, b = _affine(case, "N", "H", "V")
    rng = case.rng("targets")
    if case.options.get("logits") is not None:
        # Multiples of 1/8, so that logits of 1e4 are exact in float32 too and the comparison with
        # the float64 oracle is about the softmax, not about rounding the logits.
        h, w = np.round(h), np.round(w * 8) / 8
        large = np.full(V, 1e4)
        b = (
            large
            if case.options["logits"] == "large"
            else np.where(np.arange(V) % 3, -large, large)
        )
    targets = rng.integers(0, V, N).astype(np.int32)
    if case.options.get("targets") == "same":
        targets[:] = V // 2
    return {"h": h, "w": w, "b": b, "targets": targets}


def _xent_losses(case: Case) -> Arguments:
    """Both losses, and what the second one is made of."""
    chosen = {name: case.options[name] for name in XENT_OPTIONS if name in case.options}
    N = case.dims["N"]
    return {"nll": empty(N), "loss": empty(N) if chosen else None, **chosen}


def _xent_forward(case: Case, dtype: Any) -> Arguments:
    return {**_xent_losses(case), **_xent_inputs(case)}


def _xent_gradients(case: Case, dtype: Any) -> Arguments:
    inputs = _xent_inputs(case)
    weights = None
    if case.options.get("weights"):
        weights = case.rng("weights").normal(size=case.dims["N"])
        weights[::4] = 0
    return {
        **_xent_losses(case),
        "dh": empty(*inputs["h"].shape),
        "dw": empty(*inputs["w"].shape),
        "db": None if inputs["b"] is None else empty(case.dims["V"]),
        **inputs,
        "weights": weights,
    }


def _xent_distribution(case: Case) -> Arguments:
    inputs = _xent_inputs(case)
    del inputs["targets"]
    return {**inputs, "temperature": case.options.get("temperature", 1.0)}


def _xent_log_prob(case: Case, dtype: Any) -> Arguments:
    return {"log_prob": empty(case.dims["N"], case.dims["V"]), **_xent_distribution(case)}


def _xent_top_k(case: Case, dtype: Any) -> Arguments:
    N, K = case.dims["N"], case.options.get("k", min(5, case.dims["V"]))
    ids = np.full((N, K), -7, np.int32)
    return {"log_prob": empty(N, K), "ids": ids, **_xent_distribution(case)}


def _xent_sample(case: Case, dtype: Any) -> Arguments:
    ids = np.full(case.dims["N"], -7, np.int32)
    rows = np.arange(len(ids), dtype=np.int32)[::-1].copy()
    where = {"rows": rows, "seed": 3, "step": 5, "time": 7, "layer": 2}
    return {"ids": ids, **_xent_distribution(case), **where}


def _xent_entropy(case: Case, dtype: Any) -> Arguments:
    return {"entropy": empty(case.dims["N"]), **_xent_distribution(case)}


def _embedding_inputs(case: Case) -> tuple[Array, Array, Array]:
    N, V, D = (case.dims[k] for k in "NVD")
    rng = case.rng("main")
    # Squaring favours small ids, so that some repeat and some never occur.
    ids = (V * rng.random(N) ** 2).astype(np.int32)
    if case.options.get("ids") == "same":
        ids[:] = V - 1
    return ids, rng.normal(size=(V, D)), rng.normal(size=(N, D))


def _embedding_forward(case: Case, dtype: Any) -> Arguments:
    ids, w, _ = _embedding_inputs(case)
    return {"y": empty(case.dims["N"], case.dims["D"]), "ids": ids, "w": w}


def _embedding_backward(case: Case, dtype: Any) -> Arguments:
    ids, _, dy = _embedding_inputs(case)
    return {
        "rows": np.full(len(ids), -7, np.int32),
        "drows": empty(*dy.shape),
        "ids": ids,
        "dy": dy,
    }


def _dropout(case: Case, dtype: Any) -> Arguments:
    shape = tuple(case.dims[k] for k in "TBD")
    words = {"seed": 3, "step": 5, "site": 2, "layer": 1, "time0": 0, "locked": False}
    return {"y": empty(*shape), "x": case.rng("main").normal(size=shape), **words, **case.options}


def _optimiser(case: Case, moments: dict[str, bool]) -> Arguments:
    """w, gradient and moments; `moments` says of each whether it is never negative."""
    rng = case.rng("main")
    rows = case.options.get("rows")
    shape = (case.dims["P"],) if rows is None else (case.dims["V"], case.dims["D"])
    made: Arguments = {"w": rng.normal(size=shape)}
    if rows is None:
        made["g"] = rng.normal(size=shape)
    else:
        made["rows"] = np.array(rows, np.int32)
        made["drows"] = rng.normal(size=(len(rows), case.dims["D"]))
    for name, positive in moments.items():
        moment = rng.normal(size=shape)
        made[name] = moment**2 if positive else moment
    return {**made, "scale": 0.75, "lr": 0.1}


def _with_options(case: Case, made: Arguments, **defaults: Any) -> Arguments:
    return {**made, **{name: case.options.get(name, value) for name, value in defaults.items()}}


def _sgd(case: Case, dtype: Any) -> Arguments:
    made = _optimiser(case, {"momentum_buffer": False} if "momentum" in case.options else {})
    made.setdefault("momentum_buffer", None)
    return _with_options(case, made, momentum=0.0, weight_decay=0.0, nesterov=False)


def _adam(case: Case, dtype: Any) -> Arguments:
    made = _optimiser(case, {"m": False, "v": True})
    if case.options.get("t") == 1:
        made["m"][...], made["v"][...] = 0, 0
    made |= {"beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
    return _with_options(case, made, weight_decay=0.0, decoupled=False, t=7)


def _adagrad(case: Case, dtype: Any) -> Arguments:
    made = _optimiser(case, {"v": True}) | {"eps": 1e-8}
    return _with_options(case, made, weight_decay=0.0)


def _sum_squares(case: Case, dtype: Any) -> Arguments:
    return {"x": case.rng("main").normal(size=case.dims["P"])}


def _clip_values(case: Case, dtype: Any) -> Arguments:
    return {"x": case.rng("main").normal(size=case.dims["P"]), "limit": 0.5}


_NORM = ("norm", "rstd")
_BACKWARD = ("dx", "dh0", "dw_ih", "dw_hh", "db")

FUNCTIONS: dict[str, Function] = {
    "lstm_forward": Function(
        "lstm",
        _lstm_forward,
        ("y", "h_last", "c_last", "gates", "c", "h_in", "m", *_NORM, "norm_c"),
        ("gates", "c", *_NORM, "norm_c"),
    ),
    "lstm_backward": Function(
        "lstm",
        _lstm_backward,
        (*_BACKWARD, "dc0", "dpeephole", "dw_hr", "dln_gates", "dln_cell", "gates", "norm"),
    ),
    "gru_forward": Function(
        "gru",
        _gru_forward,
        ("y", "h_last", "gates", "hn", "h_in", *_NORM),
        ("gates", "hn", *_NORM),
    ),
    "gru_backward": Function(
        "gru", _gru_backward, (*_BACKWARD, "db_hn", "dln_gates", "gates", "hn", "norm")
    ),
    "rnn_forward": Function("rnn", _rnn_forward, ("y", "h_last", "h_in", *_NORM), _NORM),
    "rnn_backward": Function("rnn", _rnn_backward, (*_BACKWARD, "dln_gates", "dpre", "norm")),
    "linear_forward": Function("linear", _linear_forward, ("y",)),
    "linear_backward": Function("linear", _linear_backward, ("dx", "dw", "db")),
    "xent_forward": Function("xent", _xent_forward, ("nll", "loss")),
    "xent_gradients": Function("xent", _xent_gradients, ("nll", "loss", "dh", "dw", "db")),
    "xent_log_prob": Function("xent", _xent_log_prob, ("log_prob",)),
    "xent_top_k": Function("xent", _xent_top_k, ("log_prob", "ids")),
    "xent_sample": Function("xent", _xent_sample, ("ids",)),
    "xent_entropy": Function("xent", _xent_entropy, ("entropy",)),
    "candidates_forward": Function("candidates", candidates.forward, ("loss",)),
    "candidates_gradients": Function(
        "candidates", candidates.gradients, ("loss", "dh", "rows", "drows", "db")
    ),
    "hsoftmax_forward": Function("hsoftmax", hsoftmax.forward, ("nll",)),
    "hsoftmax_gradients": Function(
        "hsoftmax", hsoftmax.gradients, ("nll", "dh", "rows", "drows", "db")
    ),
    "hsoftmax_log_prob": Function("hsoftmax", hsoftmax.log_prob, ("log_prob",)),
    "hsoftmax_top_k": Function("hsoftmax", hsoftmax.top_k, ("log_prob", "ids")),
    "hsoftmax_sample": Function("hsoftmax", hsoftmax.sample, ("ids",)),
    "embedding_forward": Function("embedding", _embedding_forward, ("y",)),
    "embedding_backward": Function("embedding", _embedding_backward, ("rows", "drows")),
    "dropout": Function("dropout", _dropout, ("y",)),
    "sum_squares": Function("clip", _sum_squares, ()),
    "clip_values": Function("clip", _clip_values, ("x",)),
    "sgd_update": Function("sgd", _sgd, ("w", "momentum_buffer")),
    "sgd_update_rows": Function("sgd", _sgd, ("w", "momentum_buffer"), rows=True),
    "adam_update": Function("adam", _adam, ("w", "m", "v")),
    "adam_update_rows": Function("adam", _adam, ("w", "m", "v"), rows=True),
    "adagrad_update": Function("adagrad", _adagrad, ("w", "v")),
    "adagrad_update_rows": Function("adagrad", _adagrad, ("w", "v"), rows=True),
}
