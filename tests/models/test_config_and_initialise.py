"""RecurrentLMConfig and initial weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.testing import assert_close, assert_same_bits
from pynlm.testing.tolerances import CLOSED_FORM

SIZES: dict[str, Any] = {"vocab_size": 400, "embedding_size": 24, "hidden_sizes": (40, 24)}


def make(dtype: Any = np.float64, seed: int = 1, **changes: Any) -> RecurrentLM:
    model = RecurrentLM(RecurrentLMConfig(**{**SIZES, **changes}), dtype)
    model.initialise(seed)
    return model


def is_uniform(x: np.ndarray, bound: float) -> bool:
    """Fills [-bound, bound] and has about its variance."""
    spread = abs(x.std() / (bound / np.sqrt(3)) - 1) < 0.1 + 1.5 / np.sqrt(x.size)
    return bool(0.9 * bound < abs(x).max() <= bound and spread)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("init", ["uniform", "xavier", "he", "orthogonal", "torch"])
@pytest.mark.parametrize("init_bias", ["zero", "uniform"])
def test_distributions(cell: str, init: str, init_bias: str) -> None:
    model = make(cell=cell, init=init, init_bias=init_bias, init_scale=0.05)
    w = {name: p.data for name, p in model.parameters.items()}
    size, inputs = 40, 24
    bound_ih = {
        "uniform": 0.05,
        "xavier": np.sqrt(6 / (inputs + size)),
        "he": np.sqrt(6 / inputs),
        "orthogonal": np.sqrt(6 / (inputs + size)),
        "torch": 1 / np.sqrt(size),
    }[init]
    assert is_uniform(w["recurrent.0.w_ih"], bound_ih)
    for gate in np.split(w["recurrent.0.w_hh"], len(w["recurrent.0.w_hh"]) // size):
        if init == "orthogonal":
            assert_close(gate @ gate.T, np.eye(size), CLOSED_FORM, what="product")
        else:
            bound = {"xavier": np.sqrt(6 / (2 * size)), "he": np.sqrt(6 / size)}
            assert is_uniform(gate, bound.get(init, bound_ih))
    bound_head = {
        "uniform": 0.05,
        "xavier": np.sqrt(6 / (24 + 400)),
        "he": np.sqrt(6 / 24),
        "orthogonal": np.sqrt(6 / (24 + 400)),
        "torch": 1 / np.sqrt(24),
    }[init]
    assert is_uniform(w["head.weight"], bound_head)
    if init == "torch":
        assert abs(w["embedding.weight"].std() - 1) < 0.05
    else:
        assert is_uniform(w["embedding.weight"], 0.05)
    biases = [name for name in w if name.endswith((".b", ".b_hn", ".bias"))]
    assert len(biases) == (5 if cell == "gru" else 3)
    for name in biases:
        width = 24 if name == "head.bias" or ".1." in name else size
        bound = 0.05 if init == "uniform" else 1 / np.sqrt(width)
        if init_bias == "zero":
            assert (w[name] == 0).all()
        elif init == "torch" and name.endswith(".b"):
            # The sum of torch's two biases, except for the part that a GRU keeps apart.
            summed = w[name][: 2 * width] if cell == "gru" else w[name]
            assert bound < abs(summed).max() <= 2 * bound
            if cell == "gru":
                assert is_uniform(w[name][2 * width :], bound)
        else:
            assert is_uniform(w[name], bound)


def test_tied_table_is_bounded() -> None:
    model = make(init="torch", tied=True, init_scale=0.05)
    assert is_uniform(model.parameters["embedding.weight"].data, 0.05)


def test_forget_bias() -> None:
    plain, shifted = make(init_bias="uniform"), make(init_bias="uniform", forget_bias=1.5)
    for name, p in plain.parameters.items():
        want = p.data.copy()
        if name.endswith(".b"):
            size = len(want) // 4
            want[size : 2 * size] += 1.5
        assert_same_bits(shifted.parameters[name].data, want, what=name)


def test_seed_alone_decides() -> None:
    a, again, other = make(), make(), make(seed=2)
    again.initialise(7)
    again.initialise(1)
    for name, p in a.parameters.items():
        assert_same_bits(again.parameters[name].data, p.data, what=name)
        if not name.endswith((".b", ".bias")):
            assert (other.parameters[name].data != p.data).any()
    small = make(np.float32)
    for name, p in a.parameters.items():
        assert_same_bits(small.parameters[name].data, p.data.astype(np.float32), what=name)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\^32\)"):
        a.initialise(-1)


def test_config_round_trip() -> None:
    config = RecurrentLMConfig(**SIZES, cell="gru", dropout_between=0.5, init="torch")
    values = config.to_dict()
    assert values["hidden_sizes"] == [40, 24]
    assert RecurrentLMConfig.from_dict(values) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive, got 0"),
        ({"embedding_size": -1}, "embedding_size must be positive, got -1"),
        ({"hidden_sizes": ()}, r"hidden_sizes must be one or more positive widths, got \[\]"),
        ({"hidden_sizes": (3, 0)}, r"hidden_sizes must be one or more positive widths"),
        ({"cell": "elman"}, "cell must be one of lstm, gru, rnn_tanh, rnn_relu, got 'elman'"),
        ({"init": "zero"}, "init must be one of uniform, xavier, he, orthogonal, torch"),
        ({"init_bias": "one"}, "init_bias must be one of zero, uniform, got 'one'"),
        ({"init_scale": 0.0}, "init_scale must be positive, got 0.0"),
        ({"dropout_input": 1.0}, r"dropout_input must be in \[0, 1\), got 1.0"),
        ({"dropout_between": -0.1}, r"dropout_between must be in \[0, 1\), got -0.1"),
        ({"dropout_output": 2}, r"dropout_output must be in \[0, 1\), got 2"),
        (
            {"tied": True, "embedding_size": 25},
            r"hidden_sizes must be ended by embedding_size=25 when tied",
        ),
        ({"cell": "gru", "forget_bias": 1.0}, "forget_bias must be 0 for cell 'gru'"),
        ({"colour": "red"}, r"missing none, unknown \['colour'\]"),
    ],
)
def test_config_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"RecurrentLMConfig: {message}"):
        RecurrentLMConfig.from_dict({**SIZES, **change})


def test_missing_sizes_and_other_dtypes() -> None:
    with pytest.raises(ValueError, match=r"missing \['embedding_size'\], unknown none"):
        RecurrentLMConfig.from_dict({"vocab_size": 3, "hidden_sizes": [3]})
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got float16"):
        make(np.float16)
