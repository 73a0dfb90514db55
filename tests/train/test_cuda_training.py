"""Training, scoring and sampling with `--device cuda`, on arrays that NumPy does not take.

Most tests are about what stands above the kernels: compiled kernels of the CPU stand for the GPU's,
behind the wall of `pynlm.testing.device_arrays`. So they are fast, and all heads and cells take
part. Those that train with the GPU's own kernels, in the emulation, say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm import _kernels
from pynlm.kernels import _backend
from pynlm.language_model import LanguageModel
from pynlm.testing import FUNCTIONS, assert_close
from pynlm.testing.device_arrays import DeviceArray, unwrap
from pynlm.testing.emulated import StrictDevice, emulation
from pynlm.testing.tolerances import device_tolerance
from pynlm.train import Trainer

Make = Callable[..., Trainer]


def behind_the_wall(name: str) -> Callable[..., Any]:
    """A kernel of the CPU that takes arrays of the device only."""

    def call(**given: Any) -> Any:
        values = {key: unwrap(value) for key, value in given.items()}
        if isinstance(values.get("scale"), np.ndarray):  # of `clip_scale`, not waited for
            values["scale"] = values["scale"][0]
        if values.get("variant") is not None:
            values["variant"] = replace(values["variant"], rows=unwrap(values["variant"].rows))
        count = getattr(_kernels, name)(**values)
        if count is not None:
            DeviceArray.waits += 1
        return count

    return call


@pytest.fixture
def device() -> Iterator[StrictDevice]:
    with emulation(StrictDevice()) as found:
        yield found


@pytest.fixture
def fast(device: StrictDevice, monkeypatch: pytest.MonkeyPatch) -> StrictDevice:
    """The device, with kernels of the CPU in the place of the GPU's."""
    for name in FUNCTIONS:
        monkeypatch.setitem(_backend._found, (name, "cuda"), behind_the_wall(name))
    return device


MODELS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"model.cell": "gru"},
    "reset-before": {"model.cell": "gru", "model.reset_before": True},
    "rnn": {"model.cell": "rnn_relu"},
    "variants": {
        **{"model.layer_norm": True, "model.peephole": True, "model.zoneout": 0.1},
        **{"model.zoneout_cell": 0.1, "model.weight_drop": 0.3, "model.recurrent_dropout": 0.2},
        **{"model.projection": 5, "model.locked": True, "model.forget_bias": 1.0},
    },
    "residual": {"model.hidden_sizes": [7, 7], "model.residual": True, "model.init": "torch"},
    "tied": {"model.tied": True, "model.hidden_sizes": [6], "model.init": "orthogonal"},
    "sentences": {"data.batching": "sentences"},
    "sentences-gru": {
        **{"data.batching": "sentences", "model.cell": "gru", "model.zoneout": 0.2},
        **{"model.recurrent_dropout": 0.2},
    },
    "smoothed": {"head.label_smoothing": 0.1, "head.z_loss": 0.01},
    "adaptive": {"head.kind": "adaptive", "head.cutoffs": [3, 6], "head.div_value": 1.5},
    "adaptive-input": {
        **{"head.kind": "adaptive", "head.cutoffs": [3, 6], "head.div_value": 1.5},
        **{"model.adaptive_input": True, "model.tied": True, "model.hidden_sizes": [9, 6]},
    },
    "mixture": {"head.kind": "mixture", "head.experts": 2},
    "hierarchical": {"head.kind": "hierarchical"},
    "sampled": {"head.kind": "sampled", "head.samples": 5},
    "sampled-tied": {
        **{"head.kind": "sampled", "head.samples": 5, "head.unique": False},
        **{"head.sampler": "unigram", "model.tied": True, "model.hidden_sizes": [6]},
    },
    "nce": {"head.kind": "nce", "head.samples": 5, "head.log_z": "learned"},
    "negative-sampling": {"head.kind": "negative-sampling", "head.samples": 5},
    "values-clipped": {"train.clip_value": 0.05},
    "momentum": {"optimiser.kind": "momentum", "optimiser.nesterov": True},
    "adagrad": {"optimiser.kind": "adagrad"},
    "sgd": {"optimiser.kind": "sgd", "train.loss": "sum_time", "train.clip_norm": "none"},
}


def losses(make: Make, out: str, device: str, overrides: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Loss and gradient's norm of each step, and the losses of validation and test."""
    found: list[float] = []
    trainer = make(
        out,
        device=device,
        overrides={"train.epochs": 2, **overrides},
        on_step=lambda p: found.extend((p.loss, p.grad_norm)),
    )
    result = trainer.run()
    for heldout in (result.valid, result.test):
        assert heldout is not None
        found.append(heldout.nats_per_token)
    return np.array(found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_as_on_the_cpu(
    name: str, dtype: str, make: Make, fast: StrictDevice
) -> None:
    chosen = {**MODELS[name], "train.dtype": dtype}
    want = losses(make, "cpu", "cpu", chosen)
    got = losses(make, "cuda", "cuda", chosen)
    assert_close(got, want, device_tolerance(dtype), what="losses", case=name)
