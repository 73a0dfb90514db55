"""How many threads the kernels use beside torch's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pynlm
import pynlm.torch

X = torch.randn(5, 4)
TARGET = torch.arange(5)


def call_adaptive(compiled: Callable[[Any], Any]) -> None:
    compiled(pynlm.torch.AdaptiveLogSoftmaxWithLoss(4, 9, [3], div_value=1.0))(X, TARGET)


def call_loss(compiled: Callable[[Any], Any]) -> None:
    compiled(pynlm.torch.LinearCrossEntropyLoss(4, 9))(X, TARGET)


CALLS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "LSTM": lambda compiled: compiled(pynlm.torch.LSTM(4, 3))(X),
    "LSTMCell": lambda compiled: compiled(pynlm.torch.LSTMCell(4, 3))(X),
    "adaptive": call_adaptive,
    "loss": call_loss,
}


def compile_whole(module: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("how", [lambda module: module, compile_whole], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_follows(name: str, how: Callable[[Any], Any]) -> None:
    torch.set_num_threads(3)
    CALLS[name](how)
    assert pynlm.get_num_threads() == 3


def test_linear_follows() -> None:
    torch.set_num_threads(3)
    pynlm.torch.Linear(4, 3)(X)
    assert pynlm.get_num_threads() == 3


def test_the_last_one_said() -> None:
    module = pynlm.torch.LSTM(4, 3)
    for first, second in ((torch, pynlm), (pynlm, torch)):
        first.set_num_threads(2)
        second.set_num_threads(3)
        module(X)
        assert pynlm.get_num_threads() == 3
        for home in (torch, pynlm):
            home.set_num_threads(1)


@pytest.mark.parametrize(
    "before, want",
    [("torch.set_num_threads(1)", 1), ("torch.set_num_threads(1); pynlm.set_num_threads(3)", 3)],
)
def test_said_before_the_import(before: str, want: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYNLM_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    code = (
        f"import torch, pynlm; {before}; import pynlm.torch; "
        "pynlm.torch.LSTM(4, 3)(torch.zeros(5, 4)); print(pynlm.get_num_threads())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(found.stdout) == want


def test_the_environment_counts_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNLM_NUM_THREADS", "3")
    code = (
        "import torch, pynlm, pynlm.torch; "
        "pynlm.torch.LSTM(4, 3)(torch.zeros(5, 4)); print(pynlm.get_num_threads())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(found.stdout) == 3
