"""Checkpoints that cannot be written or read: clear errors, and nothing that was there is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.train import (
    CheckpointError,
    CheckpointMissing,
    CheckpointWriteError,
    Trainer,
    find_checkpoint,
    load_model,
)
from pynlm.train.checkpoint import (
    Snapshot,
    load_checkpoint,
    restore_links,
    save_checkpoint,
)

Make = Callable[..., Trainer]


def snapshot(value: float = 1.0, size: int = 5) -> Snapshot:
    return Snapshot(
        model={"w": np.full((2, size), value, np.float32)},
        training={"optimiser.m": np.full(size, value)},
        state={"best": None, "position": {"step": 3}},
        metadata={"config": "{}"},
    )


def no_more_than(size: int) -> Callable[[], None]:
    """Let files of this process grow to `size` bytes only; what undoes it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    def undo() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

    return undo


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path, snapshot(2.5), best=True)
    back = load_checkpoint(tmp_path / "last")
    assert back.state["position"] == {"step": 3}
    assert back.state["best"] == directory.name
    assert back.metadata["config"] == "{}"
    np.testing.assert_array_equal(back.model["w"], np.full((2, 5), 2.5, np.float32))
    assert back.training["optimiser.m"].dtype == np.float64
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pt", ".new")]


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    files = set()
    for number in range(6):
        save_checkpoint(tmp_path / str(number), snapshot())
        files.add((tmp_path / str(number) / "last" / "model.safetensors").read_bytes())
    assert len(files) == 1


def test_only_best_and_last_are_kept(tmp_path: Path) -> None:
    names = [save_checkpoint(tmp_path, snapshot(v), best=v == 2.0).name for v in (1.0, 2.0, 3.0)]
    names.append(save_checkpoint(tmp_path, snapshot(4.0)).name)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [names[1], names[3]]
    assert find_checkpoint(tmp_path, "best").name == names[1]
    assert find_checkpoint(tmp_path, "last").name == names[3]


@pytest.mark.parametrize("room", [100, 3000, 5500])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, room: int) -> None:
    save_checkpoint(tmp_path, snapshot(1.0, size=300), best=True)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    undo = no_more_than(room)
    try:
        with pytest.raises(CheckpointWriteError) as caught:
            save_checkpoint(tmp_path, snapshot(2.0, size=700), best=True)
    finally:
        undo()
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EFBIG
    assert "the checkpoint before it is unharmed" in str(caught.value)
    assert "--resume" in str(caught.value)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert load_checkpoint(tmp_path / "last").model["w"][0, 0] == 1.0
    save_checkpoint(tmp_path, snapshot(3.0), best=True)
    assert load_checkpoint(tmp_path / "best").model["w"][0, 0] == 3.0


def test_a_full_disk_stops_a_run_that_then_resumes(
    make: Make,
    weights_of: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make("whole").run()
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device") as caught:
            make("run").run()
    assert caught.value.errno == errno.ENOSPC
    load_model(tmp_path / "run", "last")
    make("run", resume=True).run()
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")


def test_a_full_disk_keeps_and_names_the_config(make: Make, tmp_path: Path) -> None:
    make().run()
    path = tmp_path / "run" / "config.toml"
    before, names = path.read_bytes(), sorted(p.name for p in path.parent.iterdir())
    undo = no_more_than(10)
    try:
        with pytest.raises(OSError, match=r"File too large: .*config.toml"):
            make(resume=True).run()
    finally:
        undo()
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == names


def damage_truncate(directory: Path) -> str:
    path = directory / "model.safetensors"
    os.truncate(path, path.stat().st_size - 7)
    return r"model.safetensors is truncated: expected \d+ bytes, got \d+"


def damage_bit(directory: Path) -> str:
    path = directory / "training.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    return r"training.safetensors is damaged: its SHA-256"


def damage_missing(directory: Path) -> str:
    (directory / "model.safetensors").unlink()
    return r"model.safetensors is missing from its checkpoint"


def damage_no_state(directory: Path) -> str:
    (directory / "state.json").unlink()
    return r"is not a pynlm checkpoint: it has no state.json"


def damage_state(directory: Path) -> str:
    path = directory / "state.json"
    path.write_text(path.read_text()[:50])
    return r"state.json is truncated or no JSON file"


def damage_foreign(directory: Path) -> str:
    (directory / "state.json").write_text('{"format": "somebody else"}')
    return r"expected the format 'pynlm-checkpoint-1', got 'somebody else'"


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_bit,
        damage_missing,
        damage_no_state,
        damage_state,
        damage_foreign,
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    directory = save_checkpoint(tmp_path, snapshot(), best=True)
    message = damage(directory)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "last")


def test_a_truncated_run_is_refused_everywhere(make: Make, tmp_path: Path) -> None:
    make().run()
    damage_truncate((tmp_path / "run" / "last").resolve())
    with pytest.raises(CheckpointError, match=r"is truncated"):
        load_model(tmp_path / "run", "last")
    with pytest.raises(CheckpointError, match=r"is truncated"):
        make(resume=True).run()


def test_no_safetensors_file_is_named(tmp_path: Path) -> None:
    from pynlm.train.checkpoint import parse_tensors

    for data in (b"", b"\x00" * 20, b"PK\x03\x04 a pickle of torch's", b"\xff" * 100):
        with pytest.raises(CheckpointError, match=r"x.safetensors is not a safetensors file"):
            parse_tensors(data, tmp_path / "x.safetensors")


def swap_model(run: Path, tensors: dict[str, Any]) -> None:
    """Put other parameters into a run's last checkpoint, with digests that fit them."""
    old = load_checkpoint(run / "last")
    save_checkpoint(run, Snapshot(tensors, old.training, old.state, old.metadata))


def test_a_model_of_other_shape_is_refused(make: Make, tmp_path: Path) -> None:
    make().run()
    run = tmp_path / "run"
    model = load_checkpoint(run / "last").model
    one_less = {name: x for name, x in model.items() if name != "head.bias"}
    for tensors, message in (
        (one_less, r"parameter 'head.bias' is missing"),
        ({**model, "extra": np.zeros(1, np.float32)}, r"parameter 'extra' is not part of this"),
        ({**model, "head.bias": np.zeros(3, np.float32)}, r"must be float32 \[\d+\], got float32 "),
        ({**model, "head.bias": model["head.bias"].astype(np.float64)}, r"got float64"),
    ):
        swap_model(run, tensors)
        with pytest.raises(CheckpointError, match=message):
            load_model(run, "last")
        with pytest.raises(CheckpointError, match=message):
            make(resume=True).run()


def test_a_model_loads_from_run_or_checkpoint(make: Make, tmp_path: Path) -> None:
    make().run()
    run = tmp_path / "run"
    models = [load_model(place)[0] for place in (run, run / "best", find_checkpoint(run, "best"))]
    data = {model.parameters.data.tobytes() for model in models}
    assert len(data) == 1
    _, tokenizer, recipe = load_model(run)
    assert (recipe.name, tokenizer.level) == ("tiny", "word")


def test_what_is_missing_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run folder .*nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointMissing, match=r"empty holds no checkpoint"):
        load_model(tmp_path / "empty")
    make().run()
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointMissing, match=r"tokenizer.json is missing"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("drop", [False, True], ids=["directories", "no-links"])
def test_a_copy_without_links_goes_on(
    make: Make, weights_of: Callable[..., str], tmp_path: Path, drop: bool
) -> None:
    make("whole", overrides={"train.epochs": 4}).run()
    make("run").run()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy, symlinks=False)
    if drop:
        for name in ("last", "best"):
            shutil.rmtree(copy / name)
    else:
        shutil.rmtree(copy / "checkpoints")
    load_model(copy, "last")
    make("copy", recipe=None, resume=True, overrides={"train.epochs": 4}).run()
    for which in ("last", "best"):
        assert weights_of(copy, which) == weights_of(tmp_path / "whole", which)
        assert (copy / which).is_symlink()


def test_best_is_put_right_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, snapshot(1.0), best=True)
    directory = save_checkpoint(tmp_path, snapshot(2.0), best=True)
    # As if `best` had not been renamed yet: a link to an older checkpoint.
    shutil.copytree(directory, tmp_path / "checkpoints" / "000001")
    (tmp_path / "best").unlink()
    os.symlink("checkpoints/000001", tmp_path / "best")
    state = load_checkpoint(tmp_path / "last").state
    assert restore_links(tmp_path, directory, state["best"]) == directory.name
    assert (tmp_path / "best").resolve() == directory.resolve()


def test_state_holds_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    bad = Snapshot({}, {}, {"loss": float("nan")}, {})
    with pytest.raises(ValueError, match=r"Out of range float values"):
        save_checkpoint(tmp_path, bad)
    assert json.dumps(snapshot().state, allow_nan=False)
