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


# A training step that is worth two threads, by torch's in `borrowed`, by pynlm's own in `own`.
STEP = """
import os, threading, torch, pynlm, pynlm.torch
from pynlm import _kernels

torch.manual_seed(0)
x, module = torch.randn(20, 32, 64), pynlm.torch.LSTM(64, 64)

def step():
    module.zero_grad()
    module(x)[0].sum().backward()
    return [p.grad.clone() for p in module.parameters()]

def borrowed():
    assert _kernels.borrow_threads(torch._C.__file__)
    return step()

def own():
    assert _kernels.borrow_threads(None)
    return step()

def same(a, b):
    return all(map(torch.equal, a, b))

def count():
    return len(os.listdir("/proc/self/task"))
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="borrows torch's threads on Linux")


def output_of(code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", STEP + code], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@linux
def test_kernels_run_on_torchs_threads() -> None:
    """No thread is added to torch's; of our own there would be one."""
    found = output_of(
        "torch.set_num_threads(2); torch.ones(512, 512) @ torch.ones(512, 512); a = count()\n"
        "step(); b = count()\n"
        "for _ in range(1000):  # beside other work callers are alone for a while\n"
        "    own()\n"
        "    if count() > b: break\n"
        "print(b - a, count() - b)"
    )
    assert found == "0 1"


@linux
@pytest.mark.parametrize(("torchs", "ours"), [(2, 2), (3, 3), (2, 3), (3, 2), (1, 2)])
def test_whose_threads_they_are_changes_no_bit(torchs: int, ours: int) -> None:
    found = output_of(
        "pynlm.set_num_threads(1); want = step()\n"
        f"torch.set_num_threads({torchs}); pynlm.set_num_threads({ours})\n"
        "print(same(want, borrowed()), same(want, own()), same(want, borrowed()))"
    )
    assert found == "True True True"


@linux
def test_threads_of_torch_that_flush_denormals_change_nothing() -> None:
    found = output_of(
        "x *= 1e-38; torch.set_num_threads(1); pynlm.set_num_threads(1); want = step()\n"
        "torch.set_flush_denormal(True)  # new threads inherit it\n"
        "torch.set_num_threads(2); pynlm.set_num_threads(2); got = borrowed()\n"
        "torch.set_flush_denormal(False); print(same(want[:1], got[:1]), bool(want[0].any()))"
    )
    assert found == "True True"


@linux
def test_a_forked_child_has_threads_of_its_own() -> None:
    """Torch's are not there any more, and who waits for them waits for ever."""
    found = output_of(
        "torch.set_num_threads(2); pynlm.set_num_threads(2); want = borrowed()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    from pynlm import kernels\n"
        "    a = x.numpy().reshape(-1, 64); y = __import__('numpy').zeros((640, 512), 'f4')\n"
        "    w = __import__('numpy').ones((512, 64), 'f4')\n"
        "    kernels.linear_forward(y=y, x=a, w=w, b=None)\n"
        "    os._exit(0 if abs(y[:, 0] - a.sum(1)).max() < 1e-4 else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), same(want, borrowed()))"
    )
    assert found == "0 True"


@linux
def test_several_callers_share_torchs_threads() -> None:
    found = output_of(
        "torch.set_num_threads(2); pynlm.set_num_threads(2); want = borrowed()\n"
        "grads = {}\n"
        "def work(i):\n"
        "    m = pynlm.torch.LSTM(64, 64); m.load_state_dict(module.state_dict())\n"
        "    for _ in range(20):\n"
        "        m.zero_grad(); m(x)[0].sum().backward()\n"
        "    grads[i] = [p.grad for p in m.parameters()]\n"
        "team = [threading.Thread(target=work, args=(i,)) for i in range(4)]\n"
        "[t.start() for t in team]; [t.join() for t in team]\n"
        "print(all(same(want, g) for g in grads.values()), len(grads))"
    )
    assert found == "True 4"
