# Kept by hand; `make lint` compares it with the compiled module (stubtest). The contract of each
# kernel stands in pynlm/kernels and csrc/*/NAME.h.
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_Reals = NDArray[np.float32] | NDArray[np.float64]
_Ids = NDArray[np.int32]

def isa_name() -> str: ...
def available_isas() -> list[str]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def fma_peak(*, iterations: int, float64: bool = False) -> float: ...
def lstm_forward(
    *,
    y: _Reals,
    h_last: _Reals,
    c_last: _Reals,
    gates: _Reals | None,
    c: _Reals | None,
    h_in: _Reals | None = None,
    x: _Reals,
    h0: _Reals,
    c0: _Reals,
    w_ih: _Reals,
    w_hh: _Reals,
    b: _Reals,
    peephole: _Reals | None = None,
    mask_h: _Reals | None = None,
    lengths: _Ids | None = None,
    variant: object = None,
) -> None: ...
def lstm_backward(
    *,
    dx: _Reals | None,
    dh0: _Reals,
    dc0: _Reals,
    dw_ih: _Reals,
    dw_hh: _Reals,
    db: _Reals,
    dpeephole: _Reals | None = None,
    gates: _Reals,
    c: _Reals,
    h_in: _Reals | None = None,
    y: _Reals,
    x: _Reals,
    h0: _Reals,
    c0: _Reals,
    w_ih: _Reals,
    w_hh: _Reals,
    peephole: _Reals | None = None,
    mask_h: _Reals | None = None,
    dy: _Reals,
    dh_last: _Reals | None,
    dc_last: _Reals | None,
    lengths: _Ids | None = None,
    variant: object = None,
) -> None: ...
def gru_forward(
    *,
    y: _Reals,
    h_last: _Reals,
    gates: _Reals | None,
    hn: _Reals | None,
    h_in: _Reals | None = None,
    x: _Reals,
    h0: _Reals,
    w_ih: _Reals,
    w_hh: _Reals,
    b: _Reals,
    b_hn: _Reals,
    mask_h: _Reals | None = None,
    lengths: _Ids | None = None,
    variant: object = None,
) -> None: ...
def gru_backward(
    *,
    dx: _Reals | None,
    dh0: _Reals,
    dw_ih: _Reals,
    dw_hh: _Reals,
    db: _Reals,
    db_hn: _Reals,
    gates: _Reals,
    hn: _Reals,
    h_in: _Reals | None = None,
    y: _Reals,
    x: _Reals,
    h0: _Reals,
    w_ih: _Reals,
    w_hh: _Reals,
    mask_h: _Reals | None = None,
    dy: _Reals,
    dh_last: _Reals | None,
    lengths: _Ids | None = None,
    variant: object = None,
) -> None: ...
def rnn_forward(
    *,
    y: _Reals,
    h_last: _Reals,
    h_in: _Reals | None = None,
    x: _Reals,
    h0: _Reals,
    w_ih: _Reals,
    w_hh: _Reals,
    b: _Reals,
    mask_h: _Reals | None = None,
    nonlinearity: Literal["tanh", "relu"],
    lengths: _Ids | None = None,
    variant: object = None,
) -> None: ...
def rnn_backward(
    *,
    dx: _Reals | None,
    dh0: _Reals,
    dw_ih: _Reals,
    dw_hh: _Reals,
    db: _Reals,
    dpre: _Reals,
    h_in: _Reals | None = None,
    y: _Reals,
    x: _Reals,
    h0: _Reals,
    w_ih: _Reals,
    w_hh: _Reals,
    mask_h: _Reals | None = None,
    dy: _Reals,
    dh_last: _Reals | None,
    nonlinearity: Literal["tanh", "relu"],
    lengths: _Ids | None = None,
    variant: object = None,
) -> None: ...
def linear_forward(
    *,
    y: _Reals,
    x: _Reals,
    w: _Reals,
    b: _Reals | None,
) -> None: ...
def linear_backward(
    *,
    dx: _Reals | None,
    dw: _Reals,
    db: _Reals | None,
    dy: _Reals,
    x: _Reals,
    w: _Reals,
) -> None: ...
def xent_forward(
    *,
    nll: _Reals,
    h: _Reals,
    w: _Reals,
    b: _Reals | None,
    targets: _Ids,
) -> None: ...
def xent_gradients(
    *,
    nll: _Reals,
    dh: _Reals,
    dw: _Reals,
    db: _Reals | None,
    h: _Reals,
    w: _Reals,
    b: _Reals | None,
    targets: _Ids,
    weights: _Reals | None,
) -> None: ...
def xent_log_prob(
    *,
    log_prob: _Reals,
    h: _Reals,
    w: _Reals,
    b: _Reals | None,
) -> None: ...
def embedding_forward(
    *,
    y: _Reals,
    ids: _Ids,
    w: _Reals,
) -> None: ...
def embedding_backward(
    *,
    rows: _Ids,
    drows: _Reals,
    ids: _Ids,
    dy: _Reals,
) -> int: ...
def dropout(
    *,
    y: _Reals,
    x: _Reals,
    p: float,
    seed: int,
    step: int,
    site: int,
    layer: int,
    time0: int = 0,
    locked: bool = False,
) -> None: ...
def sum_squares(
    *,
    x: _Reals,
) -> float: ...
def clip_values(
    *,
    x: _Reals,
    limit: float,
) -> None: ...
def sgd_update(
    *,
    w: _Reals,
    g: _Reals,
    momentum_buffer: _Reals | None,
    scale: float,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None: ...
def sgd_update_rows(
    *,
    w: _Reals,
    rows: _Ids,
    drows: _Reals,
    momentum_buffer: _Reals | None,
    scale: float,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None: ...
def adam_update(
    *,
    w: _Reals,
    g: _Reals,
    m: _Reals,
    v: _Reals,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
) -> None: ...
def adam_update_rows(
    *,
    w: _Reals,
    rows: _Ids,
    drows: _Reals,
    m: _Reals,
    v: _Reals,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    t: int,
) -> None: ...
def adagrad_update(
    *,
    w: _Reals,
    g: _Reals,
    v: _Reals,
    scale: float,
    lr: float,
    eps: float,
    weight_decay: float,
) -> None: ...
def adagrad_update_rows(
    *,
    w: _Reals,
    rows: _Ids,
    drows: _Reals,
    v: _Reals,
    scale: float,
    lr: float,
    eps: float,
    weight_decay: float,
) -> None: ...
