"""Training steps that are recorded once and repeated: the same bits as steps queued one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.cuda import waves
from pynlm.cuda.graphs import _CupyGraph
from pynlm.testing import capture
from pynlm.testing.emulated import StrictDevice, has_card
from pynlm.testing.races import timeline
from pynlm.train import Trainer, bptt, graphs
from pynlm.train.position import Progress

Make = Callable[..., Trainer]

DROPPED: dict[str, Any] = {"model.recurrent_dropout": 0.2, "model.zoneout": 0.2}
KINDS: dict[str, dict[str, Any]] = {
    "adam": {"schedule.kind": "step", "schedule.start_epoch": 1, "schedule.decay": 0.5},
    "adamw": {"optimiser.kind": "adamw", "model.cell": "gru", **DROPPED},
    "sgd": {"optimiser.kind": "sgd", "optimiser.lr": 0.5, "model.cell": "rnn_relu", **DROPPED},
    "momentum": {"optimiser.kind": "momentum", "optimiser.lr": 0.05, "train.clip_value": 0.05},
    "adagrad": {"optimiser.kind": "adagrad", "train.loss": "sum_time", "train.clip_norm": "none"},
    "before": {"model.cell": "gru", "model.reset_before": True, **DROPPED},
    "variants": {
        **DROPPED,
        "model.layer_norm": True,
        "model.peephole": True,
        "model.zoneout_cell": 0.1,
        "model.weight_drop": 0.3,
        "model.projection": 5,
        "model.locked": True,
    },
    "residual": {"model.hidden_sizes": [7, 7], "model.residual": True},
    "tied": {"model.tied": True, "model.hidden_sizes": [6], "head.label_smoothing": 0.1},
    "hierarchical": {"head.kind": "hierarchical"},
    "mixture": {"head.kind": "mixture", "head.experts": 2},
    "sampled": {"head.kind": "sampled", "head.samples": 5},
    "nce": {"head.kind": "nce", "head.samples": 5, "head.log_z": "learned"},
    "negative-sampling": {"head.kind": "negative-sampling", "head.samples": 5},
}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each start of a graph."""
    found: list[int] = []
    for kind in (capture.EmulatedGraph, _CupyGraph):

        def counted(self: Any, launch: Callable[..., None] = kind.launch) -> None:
            found.append(len(found))
            launch(self)

        monkeypatch.setattr(kind, "launch", counted)
    return found


def trained(
    make: Make, out: str, chosen: dict[str, Any], **texts: Any
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What each step measured and what validation found, in a run of two epochs."""
    found: list[float] = []

    def see(p: Progress) -> None:
        found.extend((p.loss, p.grad_norm))

    chosen = {"train.epochs": 2, **chosen}
    result = make(out, device="cuda", overrides=chosen, on_step=see, **texts).run()
    assert result.valid is not None
    return np.array([*found, result.valid.nats_per_token])


def assert_same_runs(
    make: Make, weights_of: Callable[..., str], folder: Path, chosen: dict[str, Any], **texts: Any
) -> None:
    """Steps that are queued one by one, and steps by graphs."""
    want = trained(make, "queued", {**chosen, "train.graph": False}, **texts)
    got = trained(make, "graphs", chosen, **texts)
    np.testing.assert_array_equal(got, want)
    assert weights_of(folder / "graphs") == weights_of(folder / "queued")


@pytest.mark.parametrize("name", KINDS)
def test_the_same_bits(
    name: str,
    make: Make,
    fast: StrictDevice,
    launches: list[int],
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Over the ends of epochs, a shorter last batch, and rates that change."""
    assert_same_runs(make, weights_of, tmp_path, KINDS[name])
    assert len(launches) > 20


SHORT: dict[str, Any] = {
    "model.embedding_size": 5,
    "model.hidden_sizes": [6],
    "train.batch_size": 3,
    "train.bptt": 4,
    "train.epochs": 1,
}


@pytest.mark.parametrize("name", ["adamw", "sgd", "before", "variants", "hierarchical", "nce"])
def test_the_same_bits_in_the_emulation(
    name: str,
    make: Make,
    device: StrictDevice,
    launches: list[int],
    few_lines: dict[str, Path],
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    """With the GPU's own kernels."""
    assert_same_runs(make, weights_of, tmp_path, {**KINDS[name], **SHORT}, **few_lines)
    assert launches


@pytest.mark.parametrize("name", ["adam", "variants"])
def test_the_same_bits_in_lanes(
    name: str,
    make: Make,
    device: StrictDevice,
    launches: list[int],
    few_lines: Any,
    weights_of: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers that run a chunk of time behind each other are part of a graph; nothing races."""
    monkeypatch.setattr(waves, "chunks_of", lambda *_: (2, 2))
    timeline.used.clear()
    chosen = {**SHORT, **KINDS[name], "model.hidden_sizes": [6, 6]}
    assert_same_runs(make, weights_of, tmp_path, chosen, **few_lines)
    assert launches and "lane 1" in timeline.used


@pytest.mark.gpu
@pytest.mark.skipif(not has_card(), reason="no GPU")
@pytest.mark.parametrize("math", ["float32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", KINDS)
def test_the_same_bits_on_a_card(
    name: str,
    math: str,
    make: Make,
    launches: list[int],
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    assert_same_runs(make, weights_of, tmp_path, {**KINDS[name], "train.math": math})
    assert len(launches) > 20


@pytest.mark.parametrize("number", ["step", "lr", "t"])
def test_a_number_given_by_value_shows(
    number: str, make: Make, fast: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be that of the recording for ever."""
    chosen = KINDS["adam"]
    want = trained(make, "queued", {**chosen, "train.graph": False})
    np.testing.assert_array_equal(trained(make, "graphs", chosen), want)
    fill = graphs._Kind.fill

    def by_value(self: Any, batch: Any, state: Any, numbers: dict[str, float]) -> None:
        fill(self, batch, state, numbers)
        self._numbers = {**self._numbers, number: numbers[number]}

    monkeypatch.setattr(graphs._Kind, "fill", by_value)
    assert (trained(make, "by-value", chosen) != want).any()


# ---- what cannot be recorded


def spoilt(update: Callable[..., Any]) -> Callable[..., Any]:
    """An update that waits for the device."""

    def waiting(self: bptt.BPTT, numbers: Any) -> Any:
        squares = update(self, numbers)
        float(squares[0])
        return squares

    return waiting


def test_a_step_that_cannot_be_recorded(
    make: Make,
    fast: StrictDevice,
    launches: list[int],
    monkeypatch: pytest.MonkeyPatch,
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Goes on as it is, which is said once."""
    monkeypatch.setattr(bptt.BPTT, "queue_update", spoilt(bptt.BPTT.queue_update))
    with pytest.warns(RuntimeWarning) as told:
        assert_same_runs(make, weights_of, tmp_path, {})
    assert not launches
    assert [str(warning.message) for warning in told] == [
        "training steps go on without CUDA graphs, which could not be made (CaptureError: a wait "
        "for the device cannot be part of a graph)"
    ]


def test_no_memory_for_a_graph(
    make: Make,
    fast: StrictDevice,
    launches: list[int],
    monkeypatch: pytest.MonkeyPatch,
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    def full(self: capture.EmulatedRecorder, work: Callable[[], None]) -> Any:
        raise MemoryError("out of memory")

    monkeypatch.setattr(capture.EmulatedRecorder, "record", full)
    with pytest.warns(RuntimeWarning, match=r"could not be made \(MemoryError: out of memory\)"):
        assert_same_runs(make, weights_of, tmp_path, {})
    assert not launches


@pytest.mark.parametrize("full", ["_Kind.__init__", "_Kind.fill", "rehearse"])
def test_no_memory_before_the_update(
    full: str,
    make: Make,
    fast: StrictDevice,
    launches: list[int],
    monkeypatch: pytest.MonkeyPatch,
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Of a kind's own arrays, or of a step that is no graph: it is done without graphs."""

    def refuse(*_: Any) -> Any:
        raise MemoryError("out of memory")

    if full == "rehearse":
        monkeypatch.setattr(capture.EmulatedRecorder, full, refuse)
    else:
        monkeypatch.setattr(graphs._Kind, full.split(".")[1], refuse)
    with pytest.warns(RuntimeWarning, match=r"could not be made \(MemoryError: out of memory\)"):
        assert_same_runs(make, weights_of, tmp_path, {})
    assert not launches


def test_no_memory_in_an_update(
    make: Make, fast: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which cannot be done again: what could help is said, and the graphs' memory is free."""
    trainer = make(device="cuda", overrides={"train.epochs": 1})

    def refuse(*_: Any) -> Any:
        raise MemoryError("out of memory")

    monkeypatch.setattr(bptt.BPTT, "queue_update", refuse)
    with pytest.raises(MemoryError, match=r"out of memory; CUDA graphs .* train\.graph=false"):
        trainer.run()
    assert trainer._bptt._graphs is not None and trainer._bptt._graphs._recorder is None


@pytest.mark.parametrize(
    "chosen",
    [
        {"head.kind": "adaptive", "head.cutoffs": [3, 6], "head.div_value": 1.5},
        {"data.batching": "sentences"},
        {"head.kind": "sampled", "head.samples": 5, "head.unique": False},
        {"train.graph": False},
    ],
    ids=["adaptive", "sentences", "not-unique", "off"],
)
def test_what_python_decides_anew_is_not_recorded(
    chosen: dict[str, Any], make: Make, fast: StrictDevice, launches: list[int]
) -> None:
    trained(make, "run", {**chosen, "train.epochs": 1})
    assert not launches


def test_few_kinds_become_graphs(
    make: Make,
    fast: StrictDevice,
    launches: list[int],
    monkeypatch: pytest.MonkeyPatch,
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Steps of three lengths, of which one may be repeated."""
    monkeypatch.setattr(graphs, "MOST", 1)
    step = bptt.BPTT.step

    def cut(self: bptt.BPTT, batch: Any, *, lr: float, step_: Any = step, step: int) -> Any:
        n = len(batch.ids) - step % 3
        ids, targets = (np.ascontiguousarray(x[:n]) for x in (batch.ids, batch.targets))
        return step_(self, type(batch)(ids, targets, None, batch.fresh), lr=lr, step=step)

    monkeypatch.setattr(bptt.BPTT, "step", cut)
    assert_same_runs(make, weights_of, tmp_path, {})
    assert 5 < len(launches) < 15


def test_settings_of_a_group_are_another_kind(make: Make, fast: StrictDevice) -> None:
    """A layer that is frozen while training runs stays as it is from then on."""
    trainer = make(device="cuda", overrides={"train.epochs": 1})
    found: list[np.ndarray[Any, Any]] = []

    def freeze(p: Progress) -> None:
        parameters = trainer.model.parameters
        parameters.groups["recurrent"].frozen = p.step >= 8
        found.append(parameters["recurrent.0.w_hh"].data.get())

    trainer._on_step = freeze
    trainer.run()
    assert (found[6] != found[7]).any()
    for w in found[8:]:
        np.testing.assert_array_equal(w, found[7])


def test_bad_ids_of_a_repeated_step(make: Make, fast: StrictDevice) -> None:
    trainer = make(device="cuda", overrides={"train.epochs": 1})
    trainer.run()
    steps = trainer._bptt
    ids = np.zeros((6, 4), np.int32)
    batch = graphs.Batch(ids, ids, None, fresh=True)
    for n in range(6):
        steps.step(batch, lr=0.1, step=100 + n)
    ids[2, 1] = 10_000
    with pytest.raises(IndexError, match=r"BPTT: ids\[9\] must be in \[0, V=\d+\), got 10000"):
        steps.step(batch, lr=0.1, step=200)
