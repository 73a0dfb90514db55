"""Initial weights of a recurrent language model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.layers.initialisers import Stream, fan_bound, he_bound, xavier_bound
from pynlm.layers.parameters import Parameters
from pynlm.models.config import RecurrentLMConfig

Array = npt.NDArray[Any]


def initialise(parameters: Parameters, config: RecurrentLMConfig, seed: int) -> None:
    """Overwrite all weights, drawn on the host: the same on every device.

    ========== ================== ======================== =================== ================
    init       embedding          w_ih, w_hh (each gate)   head                "uniform" biases
    ========== ================== ======================== =================== ================
    uniform    U(+-init_scale)    U(+-init_scale)          U(+-init_scale)     U(+-init_scale)
    xavier     U(+-init_scale)    U, 6/(fan_in+fan_out)    the same            U(+-1/sqrt(H))
    he         U(+-init_scale)    U, 6/fan_in              the same            U(+-1/sqrt(H))
    orthogonal U(+-init_scale)    xavier; w_hh orthogonal  xavier              U(+-1/sqrt(H))
    torch      N(0, 1)            U(+-1/sqrt(H))           U(+-1/sqrt(H))      U(+-1/sqrt(H))
    ========== ================== ======================== =================== ================

    fan_in is the width of a matrix's input, fan_out that of one gate. A tied table is drawn as an
    embedding, but from U(+-init_scale) with "torch": unit logits' weights of variance 1 would start
    far above the loss of a uniform distribution. "zero" biases are 0. PyTorch has two biases where
    pynlm has one: "torch" with "uniform" biases draws the sum of two. Projections of an adaptive
    input are drawn like the head, and so are tables that an adaptive head shares with it.
    `forget_bias` is added at the end. Peephole weights are drawn like "uniform" biases, whatever
    `init_bias` says, and the projection like the head, but for "torch": U(+-1/sqrt(H)). Layer norm
    starts from gains 1, bias 0; a learned log Z (`pynlm.heads.NCE`) from log V.

    Parameters
    ----------
    parameters
        A `RecurrentLM`'s.
    config
        Its configuration.
    seed
        In [0, 2^32).

    Raises
    ------
    ValueError
        Seed outside its range.
    """
    on_host = parameters.pool.device is None
    for name, p in parameters.items():
        w = p.data if on_host else np.empty(p.data.shape, p.data.dtype)
        _draw(w, name, config, seed)
        if not on_host:
            parameters.pool.load(p.data, w)


def _draw(w: Array, name: str, config: RecurrentLMConfig, seed: int) -> None:
    stream = Stream(seed, name)
    if name.startswith("embedding.") and not name.endswith(".1.weight"):
        if config.init == "torch" and not config.tied:
            stream.normal(w)
        else:
            stream.uniform(w, config.init_scale)
    elif name.endswith(("ln_gates", "ln_cell")):
        w.fill(1)
        if name.endswith("ln_cell"):
            w[1] = 0
    elif name.endswith("log_z"):
        w.fill(math.log(config.vocab_size))
    elif w.ndim == 2:
        rows, fan_in = w.shape
        whole = _is_whole(name)
        fan_out = rows if whole else config.hidden_sizes[_layer(name)]
        for first in range(0, rows, max(1, fan_out)):
            _matrix(stream, w[first : first + fan_out], name, fan_in, fan_out, config)
    elif config.init_bias == "zero" and not name.endswith("peephole"):
        w.fill(0)
    else:
        _bias(stream, w, name, config)
    if config.forget_bias and name.startswith("recurrent.") and name.endswith(".b"):
        size = len(w) // 4
        w[size : 2 * size] += config.forget_bias


def _is_whole(name: str) -> bool:
    """Whether a matrix has no gates."""
    return not name.startswith("recurrent.") or name.endswith("w_hr")


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _matrix(
    stream: Stream, w: Array, name: str, fan_in: int, fan_out: int, config: RecurrentLMConfig
) -> None:
    if config.init == "orthogonal" and name.endswith("w_hh"):
        stream.orthogonal(w)
        return
    stream.uniform(
        w,
        {
            "uniform": config.init_scale,
            "xavier": xavier_bound(fan_in, fan_out),
            "orthogonal": xavier_bound(fan_in, fan_out),
            "he": he_bound(fan_in),
            "torch": fan_bound(fan_in if _is_whole(name) else fan_out),
        }[config.init],
    )


def _bias(stream: Stream, b: Array, name: str, config: RecurrentLMConfig) -> None:
    if config.init == "uniform":
        stream.uniform(b, config.init_scale)
        return
    head = name.startswith("head.")
    bound = fan_bound(config.output_sizes[-1] if head else config.hidden_sizes[_layer(name)])
    stream.uniform(b, bound)
    if config.init == "torch" and not head and not name.endswith("peephole"):
        # A GRU's new gate keeps its two biases apart: the end of `b`, and `b_hn`.
        apart = config.cell == "gru" and not config.reset_before
        if not name.endswith("b_hn"):
            shared = len(b) * 2 // 3 if apart else len(b)
            second = np.empty(shared, b.dtype)
            stream.uniform(second, bound)
            b[:shared] += second
