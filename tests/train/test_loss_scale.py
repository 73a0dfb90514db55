"""Training with products of half precision: the loss is scaled, so that gradients stay in range."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from pynlm.cuda import clip
from pynlm.heads.options import KINDS, HeadOptions
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.testing.emulated import StrictDevice
from pynlm.text import Batch
from pynlm.train import TrainingDiverged, bptt
from pynlm.train.config import OptimiserConfig, TrainConfig
from pynlm.train.optimisers import make_optimiser

Array = np.ndarray[Any, Any]


class Trained(NamedTuple):
    """Steps, the weights after each, and what is saved."""

    steps: list[bptt.StepResult]
    weights: list[Array]
    tensors: dict[str, Array]


def trained(
    count: int = 9,
    *,
    graph: bool = True,
    resumed: dict[str, Array] | None = None,
    kind: str = "adam",
    head: dict[str, Any] | None = None,
    ragged: int | None = None,
    **train: Any,
) -> Trained:
    """A tiny model after some steps; the batch of step `ragged` has lengths."""
    options = HeadOptions(**(head or {}))
    config = RecurrentLMConfig(11, 4, (6, 5), dropout_between=0.2, head=options)
    model = RecurrentLM(config, device="cuda", counts=np.arange(11, 0, -1))
    model.initialise(3)
    optimiser = make_optimiser(OptimiserConfig(kind=kind, weight_decay=0.01), model.parameters)
    steps = bptt.BPTT(model, optimiser, TrainConfig(graph=graph, **train))
    if resumed is not None:
        steps.load_tensors(resumed)
    rng, found, weights = np.random.default_rng(1), [], []
    for n in range(count):
        ids, targets = rng.integers(11, size=(2, 5, 3)).astype(np.int32)
        lengths = np.array([5, 3, 1], np.int32) if n == ragged else None
        batch = Batch(ids, targets, lengths, fresh=n == 0)
        found += steps.settle([steps.step(batch, lr=0.01, step=n)])
        weights.append(model.parameters.data.get())
    tensors = {name: x if type(x) is np.ndarray else x.get() for name, x in steps.tensors().items()}
    return Trained(found, weights, tensors)


@pytest.mark.parametrize("kind", ["adam", "momentum", "adagrad"])
@pytest.mark.parametrize("graph", [True, False])
def test_a_power_of_two_changes_no_bit(fast: StrictDevice, kind: str, graph: bool) -> None:
    """Where nothing is rounded to half precision: here the kernels are the CPU's."""
    rest: dict[str, Any] = {"kind": kind, "clip_norm": 0.3, "clip_value": 0.05}
    want = trained(math="float32", graph=False, **rest)
    got = trained(math="fp16", graph=graph, **rest)
    assert got.steps == want.steps
    np.testing.assert_array_equal(got.weights, want.weights)
    np.testing.assert_array_equal(got.tensors["scaling"], [2.0**16, 9])


HEADS: dict[str, dict[str, Any]] = {
    "full": {"label_smoothing": 0.1, "z_loss": 1e-3},
    "adaptive": {"cutoffs": (3, 7), "div_value": 2.0},
    "hierarchical": {"tree": "huffman"},
    "mixture": {"experts": 2},
    "sampled": {"samples": 5},
    "nce": {"samples": 5, "log_z": "learned"},
    "negative-sampling": {"samples": 5, "unique": False},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("graph", [True, False])
def test_nor_for_any_head(fast: StrictDevice, head: str, graph: bool) -> None:
    """With a batch of sequences that end, too."""
    rest: dict[str, Any] = {"head": {"kind": head, **HEADS[head]}, "ragged": 6, "clip_norm": 0.3}
    want = trained(math="float32", graph=False, **rest)
    got = trained(math="fp16", graph=graph, **rest)
    assert got.steps == want.steps
    np.testing.assert_array_equal(got.weights, want.weights)
    np.testing.assert_array_equal(got.tensors["scaling"], [2.0**16, 9])


def test_every_kind_of_head_is_here() -> None:
    assert set(HEADS) == set(KINDS)


# Of NumPy, which stands for the GPU here.
OVERFLOW = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@OVERFLOW
@pytest.mark.parametrize("kind", ["adam", "momentum", "adagrad"])
def test_a_step_that_overflows_updates_nothing(
    fast: StrictDevice, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next one has half the scale; queued one by one and by a graph alike."""
    monkeypatch.setattr(bptt, "FIRST_SCALE", 2.0**136)
    got, queued = (trained(12, math="fp16", graph=graph, kind=kind) for graph in (True, False))
    finite = [np.isfinite(step.grad_norm) for step in got.steps]
    first = finite.index(True)
    assert 4 < first < 11 and all(finite[first:])
    for w in got.weights[:first]:
        np.testing.assert_array_equal(w, got.weights[0])
    assert (got.weights[first] != got.weights[0]).any()
    np.testing.assert_array_equal(got.tensors["scaling"], [2.0 ** (136 - first), 12 - first])
    np.testing.assert_array_equal(got.weights, queued.weights)
    for name, x in queued.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], x, err_msg=name)


@OVERFLOW
def test_gradients_that_are_never_finite(
    fast: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bptt, "FIRST_SCALE", 2.0**200)
    monkeypatch.setattr(bptt, "MOST_OVERFLOWS", 4)
    with pytest.raises(TrainingDiverged, match=r"the gradient's norm of step 4 is (inf|nan)"):
        trained(math="fp16")


def test_the_scale_grows_and_is_saved(fast: StrictDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "PATIENCE", 4)
    monkeypatch.setattr(clip, "MOST_SCALE", 2.0**17)
    first = trained(6, math="fp16")
    np.testing.assert_array_equal(first.tensors["scaling"], [2.0**17, 2])
    second = trained(3, math="fp16", resumed=first.tensors)
    np.testing.assert_array_equal(second.tensors["scaling"], [2.0**17, 1])


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.zeros(3), r"float64 \[3\]"),
        (np.zeros(2, np.float32), r"float32 \[2\]"),
    ],
)
def test_a_saved_scale_that_does_not_fit_is_named(
    fast: StrictDevice, wrong: Array, got: str
) -> None:
    with pytest.raises(ValueError, match=rf"scaling must be float64 \[2\], got {got}"):
        trained(1, math="fp16", resumed={**trained(1, math="fp16").tensors, "scaling": wrong})


def test_other_products_need_none(fast: StrictDevice) -> None:
    assert "scaling" not in trained(1, math="bf16").tensors
