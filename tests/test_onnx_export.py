"""Exported language models in ONNX Runtime: the same log-probabilities, to the last token."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pynlm
from pynlm.language_model import LanguageModel
from pynlm.layers import SCORING
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.onnx import export, lm_to_onnx
from pynlm.testing import assert_close
from pynlm.testing.tolerances import onnxruntime_tolerance
from pynlm.text import Tokenizer

ort = pytest.importorskip("onnxruntime")

V, T, B = 23, 13, 3
COUNTS = np.arange(V, 0, -1) ** 2

CELLS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "gru, reset before": {"cell": "gru", "reset_before": True},
    "rnn": {"cell": "rnn_tanh"},
    "rnn, relu": {"cell": "rnn_relu"},
    "peephole": {"peephole": True},
    "coupled gates": {"coupled_gates": True},
    "peephole, coupled gates": {"peephole": True, "coupled_gates": True},
    "dropout": {"dropout_input": 0.5, "recurrent_dropout": 0.3, "weight_drop": 0.5},
    "projection": {"projection": 4},
    "lstm, layer norm": {"layer_norm": True},
    "lstm, layer norm of the state": {"layer_norm": True, "layer_norm_state": True},
    "gru, layer norm": {"cell": "gru", "layer_norm": True},
    "rnn, layer norm": {"cell": "rnn_tanh", "layer_norm": True},
    "lstm, zoneout": {"zoneout": 0.3, "zoneout_cell": 0.2},
    "gru, zoneout": {"cell": "gru", "zoneout": 0.3},
    "gru, reset before, zoneout": {"cell": "gru", "reset_before": True, "zoneout": 0.3},
    "rnn, zoneout": {"cell": "rnn_relu", "zoneout": 0.3},
    "lstm, clipping": {"cell_clip": 0.3, "state_clip": 0.1},
    "gru, clipping": {"cell": "gru", "state_clip": 0.1},
    "rnn, clipping": {"cell": "rnn_tanh", "state_clip": 0.1},
    "rnn, relu, clipping": {"cell": "rnn_relu", "state_clip": 0.1},
    "projection, zoneout": {"projection": 4, "zoneout": 0.3},
    "residual": {"hidden_sizes": (7, 5, 5), "residual": True},
    "all of the LSTM": {
        "hidden_sizes": (6, 5), "peephole": True, "coupled_gates": True, "projection": 4,
        "layer_norm": True, "layer_norm_state": True, "zoneout": 0.1, "zoneout_cell": 0.2,
        "cell_clip": 0.8, "state_clip": 0.5, "residual": True,
    },
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "without bias": {"head_bias": False},
    "tied": {"hidden_sizes": (7, 6), "tied": True},
    "temperature": {"head": {"temperature": 0.6}},
    "adaptive": {"head": {"kind": "adaptive", "cutoffs": (5, 11), "div_value": 1.5}},
    "adaptive input": {
        "head": {"kind": "adaptive", "cutoffs": (5, 11), "div_value": 1.5},
        "adaptive_input": True,
    },
    "adaptive, tied": {
        "hidden_sizes": (7, 6), "head": {"kind": "adaptive", "cutoffs": (5, 11), "div_value": 1.5},
        "adaptive_input": True, "tied": True, "head_bias": False,
    },
    "mixture": {"head": {"kind": "mixture", "experts": 3, "temperature": 1.5}},
    "mixture, tied": {
        "hidden_sizes": (6,), "head": {"kind": "mixture", "experts": 2}, "tied": True,
    },
    "huffman": {"head": {"kind": "hierarchical"}},
    "huffman of 3": {"head": {"kind": "hierarchical", "arity": 3}, "head_bias": False},
    "balanced of 5": {"head": {"kind": "hierarchical", "tree": "balanced", "arity": 5}},
    "classes": {"head": {"kind": "hierarchical", "tree": "classes"}},
    "sampled": {"head": {"kind": "sampled", "samples": 8}},
    "nce": {"head": {"kind": "nce", "samples": 8, "log_z": "learned"}},
    "negative sampling": {"head": {"kind": "negative-sampling", "samples": 8}},
}  # fmt: skip
CASES = {**CELLS, **HEADS}


def make(options: dict[str, Any], dtype: str = "float32", scale: float = 0.7) -> RecurrentLM:
    """A model whose weights are all different."""
    config = RecurrentLMConfig(
        **{"vocab_size": V, "embedding_size": 6, "hidden_sizes": (7, 5), **options}
    )
    model, rng = RecurrentLM(config, dtype, counts=COUNTS), np.random.default_rng(1)
    for parameter in model.parameters.values():
        parameter.data[...] = rng.standard_normal(parameter.data.shape) * scale
    return model


def session_of(model: RecurrentLM) -> Any:
    made = lm_to_onnx(model)
    onnx.checker.check_model(made, full_check=True)
    return ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def names(session: Any) -> list[str]:
    return [value.name for value in session.get_inputs()][1:]


def run(session: Any, ids: np.ndarray, state: list[np.ndarray]) -> tuple[np.ndarray, Any]:
    """Log-probabilities [T, B, V] and the new state."""
    given = dict(zip(names(session), state, strict=True))
    log_prob, *state = session.run(None, {"tokens": ids, **given})
    return log_prob, state


def check(model: RecurrentLM, case: str, pieces: tuple[int, ...] = (4, 1, 8)) -> None:
    """Each token's nll, every log-probability and the states, in pieces with the state carried."""
    rng, session = np.random.default_rng(2), session_of(model)
    ids, targets = rng.integers(0, V, (2, sum(pieces), B))
    ids[0], ids[1] = 0, V - 1
    state = tuple(
        tuple(rng.standard_normal(s.shape).astype(model.dtype) for s in layer)
        for layer in model.initial_state(B)
    )
    tolerance = onnxruntime_tolerance(model.dtype)
    nll, last, _ = model(ids, targets, state, SCORING)
    hidden, _ = model.hidden(ids, state)
    want = np.array(model.log_prob(hidden.reshape(-1, hidden.shape[2]))).reshape(*ids.shape, V)
    flat, parts = [s for layer in state for s in layer], []
    for some in np.split(ids, np.cumsum(pieces)[:-1]):
        log_prob, flat = run(session, some, flat)
        parts.append(log_prob)
    found = np.concatenate(parts)
    assert found.dtype == model.dtype
    terms = len(ids)
    scored = -np.take_along_axis(found, targets[..., None], axis=2)[..., 0]
    assert_close(scored, nll, tolerance, what="nll", case=case, terms=terms)
    assert_close(found, want, tolerance, what="log_prob", case=case, terms=terms)
    for name, got, end in zip(
        names(session), flat, [s for layer in last for s in layer], strict=True
    ):
        assert_close(got, end, tolerance, what=name, case=case, terms=terms)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_scores_as_pynlm(case: str, dtype: str) -> None:
    check(make(CASES[case], dtype), case)


def drawn(rng: np.random.Generator) -> dict[str, Any]:
    """A cell with any of its options, of any sizes, under any head."""
    cell = str(rng.choice(["lstm", "gru", "rnn_tanh", "rnn_relu"]))
    possible = {"zoneout": 0.3, "layer_norm": True, "state_clip": 0.4}
    if cell == "lstm":
        possible |= {"peephole": True, "coupled_gates": True, "projection": int(rng.integers(3, 9))}
        possible |= {"zoneout_cell": 0.2, "cell_clip": 0.8}
    if cell == "gru":
        possible["reset_before"] = True
    options = {name: value for name, value in possible.items() if rng.random() < 0.5}
    if "reset_before" in options:
        options.pop("layer_norm", None)  # not defined together
    if cell == "lstm" and "layer_norm" in options:
        options["layer_norm_state"] = bool(rng.integers(2))
    # Layer norm divides by the deviation of numbers that, if few, may nearly be equal.
    least = 8 if "layer_norm" in options else 1
    sizes = rng.integers(least, 17, rng.integers(1, 3)).tolist()
    sizes[-1] = max(sizes[-1], 3)  # which leaves an adaptive head's last tail a dimension
    heads = [{}, *({"head": kind["head"]} for kind in HEADS.values() if "head" in kind)]
    return {"cell": cell, "hidden_sizes": sizes, **options, **heads[rng.integers(len(heads))]}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(40))
def test_any_options_score_as_pynlm(seed: int, dtype: str) -> None:
    options = drawn(np.random.default_rng(seed))
    check(make(options, dtype, scale=0.4), str(options))


@pytest.mark.parametrize(
    "head", [{}, *(HEADS[name] for name in ("adaptive", "mixture", "huffman"))]
)
def test_logits_far_apart(head: dict[str, Any]) -> None:
    """Log-probabilities of -1000 and less keep their digits."""
    model = make(head)
    for name, parameter in model.parameters.items():
        if name.startswith("head."):
            parameter.data *= 300
    check(model, "extreme")


def test_operators_where_there_are_some() -> None:
    """One node a layer in float32, and no weight twice."""
    for case, options in CELLS.items():
        made = lm_to_onnx(make(options))
        ops = [node.op_type for node in made.graph.node]
        plain = list(CELLS).index(case) <= list(CELLS).index("dropout") or case == "residual"
        assert ("Scan" not in ops) == plain, case
        assert (len({"LSTM", "GRU", "RNN"} & set(ops)) == 1) == plain, case
    tied = make(HEADS["tied"])
    stored = [x.name for x in lm_to_onnx(tied).graph.initializer]
    assert "embedding.weight" in stored and "head.weight" not in stored


def test_ids_out_of_range_are_refused() -> None:
    for case in ("lstm", "adaptive input", "adaptive, tied"):
        model = make(CASES[case])
        session = session_of(model)
        state = [s for layer in model.initial_state(1) for s in layer]
        with pytest.raises(Exception, match="out of"):
            run(session, np.array([[V]]), state)


def test_metadata() -> None:
    model = make({})
    made = lm_to_onnx(model, {"name": "a model", "vocab_size": "7", "config": "{}"})
    facts = {entry.key: entry.value for entry in made.metadata_props}
    assert facts["vocab_size"] == str(V) and facts["name"] == "a model"
    assert RecurrentLMConfig.from_dict(json.loads(facts["config"])) == model.config
    assert (made.producer_name, made.producer_version) == ("pynlm", pynlm.__version__)


def test_file_of_a_language_model(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(V - 2)]
    tokenizer = Tokenizer(["<eos>", *words, "<unk>"], COUNTS.tolist(), "word")
    lm = LanguageModel(make({}), tokenizer)
    path = lm.export_onnx(tmp_path / "deep" / "model.onnx")
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["tokenizer_sha256"] == tokenizer.digest()
    assert facts["start_id"] == str(lm.start_id) == "0"
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    # One line, word by word from the start token on.
    text = "w3 w1 w1 w20 nonsense w7"
    (score,) = lm.score(text)
    ids = [lm.start_id, *tokenizer.encode(text)]
    state = [s for layer in lm.model.initial_state(1) for s in layer]
    bits = []
    for token, target in pairwise(ids):
        log_prob, state = run(session, np.array([[token]], np.int64), state)
        bits.append(log_prob[0, 0, target] / np.log(2))
    tolerance = onnxruntime_tolerance("float32")
    assert_close(bits, score.log2_probs, tolerance, what="bits", terms=len(bits))


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"lm_to_onnx: .*pip install 'pynlm\[onnx\]'"):
        lm_to_onnx(make({}))


def test_too_large_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "lm_to_onnx: model must have less than 2 GiB of weights"
    monkeypatch.setattr(export, "LARGEST", 100)
    with pytest.raises(ValueError, match=message):
        lm_to_onnx(make({}))
    # A tree's tables count, too.
    model = make(HEADS["huffman"])
    size = sum(parameter.data.nbytes for parameter in model.parameters.values())
    monkeypatch.setattr(export, "LARGEST", size + 100)
    with pytest.raises(ValueError, match=message):
        lm_to_onnx(model)
