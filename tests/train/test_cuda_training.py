"""Training, scoring and sampling with `--device cuda`, on arrays that NumPy does not take.

Most tests are about what stands above the kernels: compiled kernels of the CPU stand for the GPU's,
behind the wall of `pynlm.testing.device_arrays`. So they are fast, and all heads and cells take
part. Those that train with the GPU's own kernels, in the emulation, say so.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.arrays import to_host
from pynlm.cuda import waves
from pynlm.cuda.device import DeviceMemoryError, DeviceUnavailable, import_cupy
from pynlm.heads import HeadOptions
from pynlm.language_model import LanguageModel, LMState
from pynlm.layers import Context
from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.testing import assert_close
from pynlm.testing.device_arrays import DeviceArray
from pynlm.testing.emulated import StrictDevice, has_card
from pynlm.testing.races import timeline
from pynlm.testing.tolerances import device_tolerance
from pynlm.train import RecipeError, Trainer, TrainingDiverged
from pynlm.train.checkpoint import load_checkpoint
from pynlm.train.position import Progress

Make = Callable[..., Trainer]


MODELS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"model.cell": "gru"},
    "reset-before": {"model.cell": "gru", "model.reset_before": True},
    "rnn": {"model.cell": "rnn_relu"},
    "variants": {
        "model.layer_norm": True,
        "model.peephole": True,
        "model.zoneout": 0.1,
        "model.zoneout_cell": 0.1,
        "model.weight_drop": 0.3,
        "model.recurrent_dropout": 0.2,
        "model.projection": 5,
        "model.locked": True,
        "model.forget_bias": 1.0,
    },
    "residual": {"model.hidden_sizes": [7, 7], "model.residual": True, "model.init": "torch"},
    "tied": {"model.tied": True, "model.hidden_sizes": [6], "model.init": "orthogonal"},
    "sentences": {"data.batching": "sentences"},
    "sentences-gru": {
        "data.batching": "sentences",
        "model.cell": "gru",
        "model.zoneout": 0.2,
        "model.recurrent_dropout": 0.2,
    },
    "smoothed": {"head.label_smoothing": 0.1, "head.z_loss": 0.01},
    "adaptive": {"head.kind": "adaptive", "head.cutoffs": [3, 6], "head.div_value": 1.5},
    "adaptive-input": {
        "head.kind": "adaptive",
        "head.cutoffs": [3, 6],
        "head.div_value": 1.5,
        "model.adaptive_input": True,
        "model.tied": True,
        "model.hidden_sizes": [9, 6],
    },
    "mixture": {"head.kind": "mixture", "head.experts": 2},
    "hierarchical": {"head.kind": "hierarchical"},
    "sampled": {"head.kind": "sampled", "head.samples": 5},
    "sampled-tied": {
        "head.kind": "sampled",
        "head.samples": 5,
        "head.unique": False,
        "head.sampler": "unigram",
        "model.tied": True,
        "model.hidden_sizes": [6],
    },
    "nce": {"head.kind": "nce", "head.samples": 5, "head.log_z": "learned"},
    "negative-sampling": {"head.kind": "negative-sampling", "head.samples": 5},
    "values-clipped": {"train.clip_value": 0.05},
    "adam": {"optimiser.kind": "adam", "optimiser.lr": 0.02},
    "momentum": {"optimiser.kind": "momentum", "optimiser.nesterov": True, "optimiser.lr": 0.05},
    "adagrad": {"optimiser.kind": "adagrad", "optimiser.lr": 0.05},
    "sgd": {
        "optimiser.kind": "sgd",
        "optimiser.lr": 0.02,
        "train.loss": "sum_time",
        "train.clip_norm": "none",
    },
}


OPTIMISERS = ("adam", "momentum", "adagrad", "sgd")


def losses(
    make: Make, out: str, device: str, overrides: dict[str, Any], **texts: Any
) -> np.ndarray[Any, Any]:
    """Loss and gradient's norm of each step, and the losses of validation and test."""
    found: list[float] = []
    trainer = make(
        out,
        device=device,
        overrides={"train.epochs": 2, **overrides},
        on_step=lambda p: found.extend((p.loss, p.grad_norm)),
        **texts,
    )
    result = trainer.run()
    for heldout in (result.valid, result.test):
        assert heldout is not None
        found.append(heldout.nats_per_token)
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in MODELS), ("adaptive-input", "float64")]
)
def test_every_model_trains_as_on_the_cpu(
    name: str, dtype: str, make: Make, fast: StrictDevice
) -> None:
    chosen = {**MODELS[name], "train.dtype": dtype}
    want = losses(make, "cpu", "cpu", chosen)
    got = losses(make, "cuda", "cuda", chosen)
    assert_close(got, want, device_tolerance(dtype), what="losses", case=name)


# ---- the GPU's own kernels

# Adam makes a step of the rate of any gradient, of what is nothing but rounding, too.
STEADY: dict[str, Any] = {"optimiser.kind": "sgd", "optimiser.lr": 0.5}
SHORT = {
    **STEADY,
    "model.embedding_size": 5,
    "model.hidden_sizes": [6, 5],
    "train.batch_size": 3,
    "train.bptt": 4,
    "train.epochs": 1,
    "train.log_every": 2,
}


EMULATED = [
    "lstm",
    "adam",
    "gru",
    "rnn",
    "sentences",
    "adaptive",
    "mixture",
    "hierarchical",
    "sampled",
]


@pytest.mark.parametrize("name", EMULATED)
def test_training_in_the_emulation(
    name: str,
    make: Make,
    device: StrictDevice,
    few_lines: dict[str, Path],
    weights_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    """As on the CPU; the same bits in any order of the threads; resumed, too."""
    chosen = {**SHORT, **MODELS[name]}
    want = losses(make, "cpu", "cpu", chosen, **few_lines)
    got = losses(make, "cuda", "cuda", chosen, **few_lines)
    assert_close(got, want, device_tolerance("float32"), what="losses", case=name)
    device.seed += 1000
    trainer = make("broken", device="cuda", overrides=chosen, **few_lines)

    def stop(p: Progress) -> None:
        trainer._interruption.pressed = p.step == 2

    trainer._on_step = stop
    assert trainer.run().interrupted
    Trainer(out=tmp_path / "broken", resume=True, device="cuda", quiet=True).run()
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "cuda")


@pytest.mark.parametrize("name", ["lstm", "variants", "residual", "sentences-gru"])
def test_training_in_lanes(
    name: str, make: Make, device: StrictDevice, few_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers a chunk of time behind each other; nothing races (`pynlm.testing.races`)."""
    chosen = {**SHORT, "model.hidden_sizes": [6, 6], **MODELS[name]}
    want = losses(make, "cpu", "cpu", chosen, **few_lines)
    monkeypatch.setattr(waves, "chunks_of", lambda *_: (2, 2))
    timeline.used.clear()
    got = losses(make, "cuda", "cuda", chosen, **few_lines)
    assert {"lane 0", "lane 1"} <= timeline.used
    assert_close(got, want, device_tolerance("float32"), what="losses", case=name)


@pytest.mark.gpu
@pytest.mark.skipif(not has_card(), reason="no GPU")
@pytest.mark.parametrize("name", MODELS)
def test_training_on_a_card(
    name: str, make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    """As on the CPU, and the same bits again; what is trained scores and samples."""
    chosen = {**STEADY, **MODELS[name]}
    want = losses(make, "cpu", "cpu", chosen)
    got = losses(make, "cuda", "cuda", chosen)
    assert_close(got, want, device_tolerance("float32"), what="losses", case=name)
    losses(make, "again", "cuda", chosen)
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "cuda")
    lm = LanguageModel.load(tmp_path / "cuda", device="cuda")
    assert len(lm.generate("the cat", 5, seed=1)) > len("the cat")
    assert [len(s.log2_probs) for s in lm.score("the cat sat\n")] == [4]


# ---- what waits


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OPTIMISERS])
def test_steps_wait_for_nothing_but_the_logged_loss(
    name: str, make: Make, fast: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer each `log_every` steps, and what a checkpoint and an evaluation read."""
    trainer = make(
        device="cuda", overrides={**MODELS[name], "train.epochs": 1, "train.log_every": 3}
    )
    waits = []
    step = Trainer._step

    def counted(self: Trainer, *args: Any) -> None:
        before = DeviceArray.waits
        step(self, *args)
        waits.append(DeviceArray.waits - before)

    monkeypatch.setattr(Trainer, "_step", counted)
    trainer.run()
    assert len(waits) > 6
    # The hierarchical softmax looks at a tree when it first meets it.
    assert waits[1:] == [int(n % 3 == 0) for n in range(2, len(waits) + 1)]


def test_a_diverging_run_ends_with_its_last_good_checkpoint(
    make: Make, fast: StrictDevice, tmp_path: Path
) -> None:
    chosen = {"optimiser.kind": "sgd", "train.clip_norm": "none", "train.checkpoint_seconds": 0}
    trainer = make(device="cuda", overrides={**chosen, "optimiser.lr": 1e30})
    with pytest.raises(TrainingDiverged, match="last good checkpoint"):
        trainer.run()
    weights = load_checkpoint(tmp_path / "run" / "last").model
    assert all(np.isfinite(w).all() for w in weights.values())


# ---- runs that stop and go on


def test_the_same_bits_again_and_after_an_interruption(
    make: Make, fast: StrictDevice, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    chosen = {"train.epochs": 2}
    make("whole", device="cuda", overrides=chosen).run()
    make("again", device="cuda", overrides=chosen).run()
    trainer = make("broken", device="cuda", overrides=chosen)

    def stop(p: Progress) -> None:
        trainer._interruption.pressed = p.step == 7

    trainer._on_step = stop
    assert trainer.run().interrupted
    resumed = Trainer(out=tmp_path / "broken", resume=True, device="cuda", quiet=True)
    resumed.run()
    whole, again, broken = (tmp_path / name for name in ("whole", "again", "broken"))
    assert weights_of(whole) == weights_of(again) == weights_of(broken)
    steps = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if s["event"] == "epoch"] == [
        json.loads(line)["step"]
        for line in (whole / "log.jsonl").read_text().splitlines()
        if '"epoch"' in line and json.loads(line)["event"] == "epoch"
    ]


def test_a_run_goes_on_elsewhere(make: Make, fast: StrictDevice, tmp_path: Path) -> None:
    """Where a run was trained is no part of it."""
    make(device="cuda", overrides={"train.epochs": 1}).run()
    assert "cuda" not in (tmp_path / "run" / "config.toml").read_text()
    result = Trainer(
        out=tmp_path / "run", resume=True, overrides={"train.epochs": 2}, quiet=True
    ).run()
    assert result.epochs == 2
    result = Trainer(
        out=tmp_path / "run", resume=True, overrides={"train.epochs": 3}, quiet=True, device="cuda"
    ).run()
    assert result.epochs == 3


def test_no_memory(
    make: Make, fast: StrictDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run says what was asked for and what is there, lets go of it, is saved, and goes on."""
    # A graph asks for nothing.
    trainer = make(device="cuda", overrides={"train.epochs": 1, "train.graph": False})
    rescue, arrays = Trainer._rescue, []

    def count() -> None:
        gc.collect()
        arrays.append(sum(type(x) is DeviceArray for x in gc.get_objects()))

    def fill(p: Progress) -> None:
        fast.memory_limit = 200 if p.step == 5 else 1 << 30
        count()

    def counted(self: Trainer) -> str:
        count()
        return rescue(self)

    monkeypatch.setattr(Trainer, "_rescue", counted)
    trainer._on_step = fill
    message = (
        r"out of memory on the GPU: 0\.0 MiB asked for \(float32 \[.*\]\), .* free of .*; "
        r"saved in .*last \(after step 5\); continue with: pynlm train --resume --out"
    )
    with pytest.raises(MemoryError, match=message):
        trainer.run()
    assert arrays[-1] <= arrays[-2]
    assert load_checkpoint(tmp_path / "run" / "last").state["position"]["step"] == 5
    fast.memory_limit = 1 << 30
    assert Trainer(out=tmp_path / "run", resume=True, device="cuda", quiet=True).run().epochs == 1
    fast.memory_limit = 200
    with pytest.raises(DeviceMemoryError, match="asked for"):
        LanguageModel.load(tmp_path / "run", device="cuda")


def test_mathematics(make: Make, fast: StrictDevice) -> None:
    """`train.math` holds for the run's steps, and for a GPU only."""
    seen = set()
    trainer = make(
        device="cuda",
        overrides={"train.math": "bf16", "train.epochs": 1},
        on_step=lambda p: seen.add(fast.math),
    )
    trainer.run()
    assert seen == {"bf16"} and fast.math == "float32"
    with pytest.raises(ValueError, match=r"train.math = 'bf16' is for device 'cuda', got 'cpu'"):
        make("other", overrides={"train.math": "bf16"})
    with pytest.raises(RecipeError, match="needs dtype = 'float32', got 'float64'"):
        make("other", overrides={"train.math": "tf32", "train.dtype": "float64"})


# ---- what is done with a model


@pytest.fixture(params=["full", "adaptive", "mixture", "hierarchical", "nce"])
def models(
    request: pytest.FixtureRequest, make: Make, fast: StrictDevice, tmp_path: Path
) -> tuple[LanguageModel, LanguageModel]:
    """A run's model on the CPU and on the device."""
    chosen = MODELS.get(request.param, {})
    make(device="cuda", overrides={**chosen, "train.epochs": 1}).run()
    there = LanguageModel.load(tmp_path / "run", device="cuda")
    assert isinstance(there.model.parameters.data, DeviceArray)
    return LanguageModel.load(tmp_path / "run"), there


def test_a_model_says_the_same_on_both_devices(
    models: tuple[LanguageModel, LanguageModel], texts: dict[str, Path]
) -> None:
    here, there = models
    close = device_tolerance("float32")
    text = texts["test"]
    for carry in (True, False):
        want, got = (lm.evaluate(text, carry=carry) for lm in models)
        assert_close(got.nats, want.nats, close, what="nats", terms=want.tokens)
        if want.log_z_mean is not None:
            assert_close(got.log_z_mean, want.log_z_mean, close, what="log Z")
        want_scores, got_scores = (lm.score(text, carry=carry) for lm in models)
        for a, b in zip(got_scores, want_scores, strict=True):
            assert_close(a.log2_probs, b.log2_probs, close, what="scores")
    assert here.generate("the cat", 20, seed=3) == there.generate("the cat", 20, seed=3)
    assert here.generate("the cat", 20, top_k=3) == there.generate("the cat", 20, top_k=3)
    steps = []
    for lm in models:
        state = LMState.stack([lm.start(), lm.start()])
        logp, state = lm.step(["the", "cat"], state)
        logp, state = lm.step(["dog", "sat", "on"], state[[1, 0, 1]])
        assert type(logp) is np.ndarray
        steps.append(logp)
        hidden = state.hidden
        for values in (lm.model.head.entropy(hidden), *lm.model.head.top_k(hidden, 3)):
            steps.append(to_host(values))
        steps.append(lm.model.head.sample(hidden, Context(train=False, seed=5)))
    for got_step, want_step in zip(steps[5:], steps[:5], strict=True):
        assert_close(got_step, want_step, close, what="step")


def test_a_model_moves(models: tuple[LanguageModel, LanguageModel]) -> None:
    here, there = models
    moved = here.to("cuda")
    assert here.to("cpu") is here and moved.model.device == "cuda"
    for a, b in ((moved, there), (there.to("cpu"), here)):
        for name, w in a.model.state_dict().items():
            np.testing.assert_array_equal(to_host(w), to_host(b.model.state_dict()[name]))
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'gpu'"):
        here.to("gpu")


@pytest.mark.parametrize("init", ["uniform", "xavier", "he", "orthogonal", "torch"])
def test_first_weights_are_those_of_the_cpu(init: str, device: StrictDevice) -> None:
    config = RecurrentLMConfig(
        11, 4, (6, 5), init=init, init_bias="uniform", forget_bias=1.0, layer_norm=True
    )
    here, there = (RecurrentLM(config, device=name) for name in ("cpu", "cuda"))
    here.initialise(3)
    there.initialise(3)
    for name, w in there.state_dict().items():
        assert isinstance(w, DeviceArray)
        np.testing.assert_array_equal(to_host(w), here.state_dict()[name])


def test_ids_are_looked_at_before_they_are_on_the_device(fast: StrictDevice) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "full": {},
        "adaptive": {"cutoffs": (5,)},
        "hierarchical": {},
        "mixture": {},
        "sampled": {"samples": 4},
    }
    for kind, given in kinds.items():
        config = RecurrentLMConfig(11, 4, (6,), head=HeadOptions(kind=kind, **given))
        model = RecurrentLM(config, device="cuda", counts=np.arange(11, 0, -1))
        good, bad = np.ones((2, 1), np.int32), np.array([[1], [11]], np.int32)
        for train in (True, False):
            with pytest.raises(IndexError, match=r"ids\[1\] must be in \[0, V=11\), got 11"):
                model(bad, good, None, Context(train=train))
            with pytest.raises(IndexError, match=r"targets\[1\] must be in \[0, V=11\), got 11"):
                model(good, bad, None, Context(train=train))


def test_export_of_a_model_on_the_device(
    models: tuple[LanguageModel, LanguageModel], tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    here, there = (lm.export_onnx(tmp_path / f"{i}.onnx") for i, lm in enumerate(models))
    assert here.read_bytes() == there.read_bytes()


def test_without_cupy(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    import_cupy.cache_clear()
    with pytest.raises(DeviceUnavailable, match=r"pip install 'pynlm\[cuda\]'"):
        make(device="cuda")
    assert not (tmp_path / "run").exists()
