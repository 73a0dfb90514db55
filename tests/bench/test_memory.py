"""Memory of training and of heads alone: each contender in a process of its own."""

from __future__ import annotations

import json
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

from bench import memory
from bench.cases import Adaptive
from bench.catalogue import FAMILIES
from bench.memory import EXACT, HIERARCHICAL, OWN, SAMPLED, USERS, HeadMemory
from pynlm.heads import Adaptive as AdaptiveHead

SHAPE = N, H, V = 64, 200, 20_000
TABLE = 4 * H * V  # bytes
LOGITS = 4 * N * V
SLACK = 6 * 2**20
CUTOFFS = (15_000, 18_000)


def test_memory_of_a_run() -> None:
    case = FAMILIES["train"][0].smoke()
    found = memory.measure(case, "pynlm", 1, steps=3)  # type: ignore[arg-type]
    weights = 4 * (2 * case.V * 200 + 2 * 4 * 200 * 400)  # type: ignore[union-attr]
    assert weights < found.first <= found.peak < 20 * weights
    assert found.steps == 3


def test_errors_name_what_failed() -> None:
    case = FAMILIES["train"][0]
    with pytest.raises(ValueError, match=r"one of pynlm.*got 'nothing'"):
        memory.measure(case, "nothing", 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        memory.measure_head(SHAPE, (), "nothing", "pynlm", 1)


@pytest.mark.parametrize("head", [EXACT, HIERARCHICAL, SAMPLED])
def test_pynlm_holds_its_weights_once(head: str) -> None:
    found = memory.measure_head(SHAPE, (), head, "pynlm", 1)
    assert TABLE < found.held < TABLE + SLACK
    # The gradient, and of the exact head a block of logits: all of it, or a few rows.
    least, most = (TABLE, TABLE + LOGITS + SLACK) if head == EXACT else (0, TABLE / 2)
    assert least < found.peak - found.held < most


@pytest.mark.parametrize("head", [USERS, OWN])
def test_an_adaptive_head_holds_one_model(head: str) -> None:
    """Those at its own cutoffs do not hold the users' model, almost a whole table here."""
    cutoffs = Adaptive(*SHAPE, CUTOFFS, chosen=head == OWN).cutoffs
    specs = AdaptiveHead.specs("", V, H, cutoffs, Adaptive.div_value)
    weights = 4 * sum(prod(spec.shape) for spec in specs)
    found = memory.measure_head(SHAPE, CUTOFFS, head, "pynlm", 1)
    assert weights < found.held < weights + SLACK
    assert found.peak - found.held < weights + SLACK


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("cutoffs", [(), CUTOFFS])
def test_torch_holds_its_weights_once(cutoffs: tuple[int, ...]) -> None:
    found = memory.measure_head(SHAPE, cutoffs, USERS if cutoffs else EXACT, "torch", 1)
    assert found.held < TABLE + SLACK
    if not cutoffs:
        assert found.held > TABLE and found.peak - found.held > TABLE + LOGITS


def test_page() -> None:
    rows = [
        HeadMemory((1, 2, 3), (), EXACT, contender, 2, 2**20, peak * 2**20)
        for contender, peak in (("pynlm", 2), ("torch", 8), ("torch (other)", 5))
    ]
    rows += [HeadMemory((1, 2, 3), (1, 2), head, "pynlm", 2, 2**20, 2**21) for head in (USERS, OWN)]
    text = memory.render({"CPU": "Some CPU"}, rows, 2)
    assert "| CPU | Some CPU |" in text
    assert "| 1,2,3 | exact | pynlm | 1.0 | 2.0 | 1.0 | 2.50× |" in text
    assert "| 1,2,3 | exact | torch (other) | 1.0 | 5.0 | 4.0 |  |" in text
    assert f"| 1,2,3 | {USERS} (1, 2) | pynlm | 1.0 | 2.0 | 1.0 |  |" in text
    assert f"| 1,2,3 | {OWN} | pynlm |" in text


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the page; what is tiny takes nothing that could be seen."""
    monkeypatch.setattr(memory, "HEADS", [(7, 16, 60)])
    monkeypatch.setattr(memory, "contenders", lambda: [memory.OURS])
    monkeypatch.setattr(memory, "ADAPTIVE", [(7, 16, 60, (5, 20))])
    memory.main(["--heads", "--out", str(tmp_path)])
    values = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    heads = [row["head"] for row in values["heads"] if row["contender"] == "pynlm"]
    assert heads == [EXACT, USERS, OWN, HIERARCHICAL, SAMPLED]
    assert (tmp_path / "memory.md").is_file()
