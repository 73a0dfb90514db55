"""ONNX Runtime as a peer: the graphs do what pynlm does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bench import ours
from bench.cases import GATES, Recurrent, Softmax
from bench.measure import check_agreement, contenders
from bench.peers import ONNXRUNTIME, available, with_onnxruntime
from bench.timing import threads


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", GATES)
def test_agrees(cell: str, layers: int, ragged: bool, count: int) -> None:
    case = Recurrent(cell, 9, 5, 6, 7, layers=layers, train=False, ragged=ragged)
    peers = available()
    with threads(count, peers):
        works = contenders(case, peers)
        assert ONNXRUNTIME in works
        check_agreement(case, works)
        # What is timed leaves results as they are.
        for work in works.values():
            work.run()
        check_agreement(case, works)


def test_padding_is_zero() -> None:
    case = Recurrent("lstm", 9, 4, 6, 7, train=False, ragged=True)
    y = with_onnxruntime.make(case, ours.make_inputs(case))[ONNXRUNTIME].results()["y"]
    for b, length in enumerate(case.lengths):
        assert np.all(y[:length, b]) and not y[length:, b].any()


def test_models_are_valid() -> None:
    for cell in GATES:
        case = Recurrent(cell, 9, 5, 6, 7, layers=2, train=False, ragged=True)
        inputs = ours.make_inputs(case)
        made = with_onnxruntime.model(case, inputs)  # type: ignore[arg-type]
        onnx.checker.check_model(onnx.load_from_string(made), full_check=True)


def test_nothing_that_it_is_not_made_for() -> None:
    for case in (
        Recurrent("gru", 9, 5, 6, 7),
        Recurrent("gru", 9, 5, 6, 7, variant="zoneout", p=0.1),
        Softmax(2, 3, 5),
    ):
        assert not with_onnxruntime.make(case, ours.make_inputs(case))
