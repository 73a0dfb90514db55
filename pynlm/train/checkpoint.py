"""Checkpoints that survive a kill at any moment, and the run folder's files.

A run folder holds numbered checkpoints and two links to them::

    checkpoints/000007/{model.safetensors, training.safetensors, state.json}
    last -> checkpoints/000007      best -> checkpoints/000005

A checkpoint is written as a new directory, every file and directory fsynced, and put in place by
one rename of the link; a directory without a link was never finished and is removed by the next
save. So `last` and `best` always name a complete checkpoint, whenever the process dies.
`state.json` is written last and carries the size and SHA-256 of the other files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pynlm.arrays import to_host
from pynlm.text.files import fsync_folder

if TYPE_CHECKING:
    from pynlm.models import RecurrentLM, RecurrentLMConfig
    from pynlm.text import Tokenizer
    from pynlm.train.config import Recipe

FORMAT = "pynlm-checkpoint-1"
_STATE = {"files": dict}  # what every state.json must hold
MODEL_FORMAT = "pynlm-model-1"

Tensors = dict[str, NDArray[Any]]


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or what is read is not one, is damaged or does not fit."""


class CheckpointMissing(FileNotFoundError, CheckpointError):
    """There is no run folder, or no checkpoint in it."""


class CheckpointWriteError(OSError, CheckpointError):
    """The disk refused (full, read-only, quota); the previous checkpoint is unharmed."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Parameters
    ----------
    model : parameter name -> array, NumPy's or (to be saved) a GPU's.
    training : optimiser and recurrent state, name -> array, likewise.
    state : plain JSON values: position, schedule, best figure, digests, log length.
    metadata : model configuration and other strings kept in the header of model.safetensors.
    """

    model: Tensors
    training: Tensors
    state: dict[str, Any]
    metadata: dict[str, str]


def save_checkpoint(run: Path, snapshot: Snapshot, *, best: bool = False) -> Path:
    """Write a checkpoint and make it the run's `last` (and, asked to, its `best`).

    `state["best"]` becomes the name of the directory if it is the best.

    Returns
    -------
    Path of the new directory.

    Raises
    ------
    CheckpointWriteError : nothing that was there before is lost.
    """
    folder = run / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        directory = folder / f"{1 + max(_serials(folder), default=0):06d}"
        if best:
            snapshot = replace(snapshot, state={**snapshot.state, "best": directory.name})
        try:
            _write_directory(directory, snapshot)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        fsync_folder(folder)
        _link(run, "last", directory)
        if best:
            _link(run, "best", directory)
    except OSError as error:
        raise _write_error(run, error) from error
    _prune(run)
    return directory


def load_checkpoint(directory: Path) -> Snapshot:
    """Read one checkpoint directory and verify every byte of it.

    Raises
    ------
    CheckpointMissing : no such directory.
    CheckpointError : truncated, damaged or foreign files, each named.
    """
    state = _read_state(directory)
    tensors: dict[str, Tensors] = {}
    metadata: dict[str, str] = {}
    for name, facts in state.pop("files").items():
        path = directory / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing from its checkpoint") from None
        if len(data) != facts["bytes"]:
            raise CheckpointError(
                f"{path} is truncated: expected {facts['bytes']} bytes, got {len(data)}"
            )
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in state.json")
        tensors[name], header = parse_tensors(data, path)
        metadata.update(header)
    return Snapshot(
        model=tensors.get("model.safetensors", {}),
        training=tensors.get("training.safetensors", {}),
        state=state,
        metadata=metadata,
    )


def find_checkpoint(run: Path, which: str = "best") -> Path:
    """The directory of a run's `best` or `last` checkpoint.

    `best` is `last` as long as no epoch has been validated. Where the links were lost (a copy that
    dropped them) the newest complete checkpoint stands in.

    Raises
    ------
    CheckpointMissing : there is none.
    """
    if not run.is_dir():
        raise CheckpointMissing(f"run folder {run} does not exist")
    for name in dict.fromkeys((which, "last")):
        directory = run / name
        if directory.exists():
            return directory.resolve()
    folder = run / "checkpoints"
    for serial in sorted(_serials(folder), reverse=True):
        directory = folder / f"{serial:06d}"
        if _is_complete(directory):
            return directory
    raise CheckpointMissing(f"{run} holds no checkpoint")


def last_good(run: Path) -> str:
    """What to say of the last checkpoint when a run ends in an error."""
    try:
        step = load_checkpoint(find_checkpoint(run, "last")).state["position"]["step"]
    except CheckpointError:
        return "no checkpoint had been saved yet"
    return f"the last good checkpoint is {run / 'last'} (after step {step})"


def restore_links(run: Path, last: Path, best: str | None) -> str | None:
    """Before a run continues: make `last` and `best` links again, `best` the recorded one.

    A kill between the two renames of a save leaves `best` one checkpoint behind; a copy made
    without links turns both into directories.

    Parameters
    ----------
    last : the directory that the run continues from.
    best : name of the best checkpoint that its state records.

    Returns
    -------
    Name of the directory that `best` links to now, None if there is none.
    """
    folder = run / "checkpoints"
    try:
        folder.mkdir(exist_ok=True)
        for name in ("best", "last"):
            path = run / name
            if path.is_dir() and not path.is_symlink():
                moved = folder / f"{1 + max(_serials(folder), default=0):06d}"
                os.rename(path, moved)
                fsync_folder(folder)
                _link(run, name, moved)
        if not (run / "last").exists():
            _link(run, "last", last)
        if best is not None and _target(run, "best") != best and _is_complete(folder / best):
            _link(run, "best", folder / best)
    except OSError as error:
        raise _write_error(run, error) from error
    return _target(run, "best")


def check_parameters(model: RecurrentLM, tensors: Tensors, path: Path) -> None:
    """Raise CheckpointError, naming the first difference, unless `tensors` fit the model."""
    own = model.state_dict().items()
    expected = {name: f"{array.dtype} {list(array.shape)}" for name, array in own}
    for name, want in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: parameter {name!r} is missing")
        got = f"{tensors[name].dtype} {list(tensors[name].shape)}"
        if got != want:
            raise CheckpointError(f"{path}: parameter {name!r} must be {want}, got {got}")
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise CheckpointError(f"{path}: parameter {extra[0]!r} is not part of this model")


def load_model(
    directory: Path, which: str = "best", device: str = "cpu"
) -> tuple[RecurrentLM, Tokenizer, Recipe]:
    """The model, vocabulary and recipe of a run folder (or of one checkpoint inside it).

    The model is on `device`, wherever it was trained.

    Raises
    ------
    CheckpointMissing (a FileNotFoundError) : folder, config, vocabulary or checkpoint is missing.
    CheckpointError (a ValueError) : a file is damaged or belongs to another run.
    """
    from pynlm.models import RecurrentLMConfig
    from pynlm.text import Tokenizer
    from pynlm.train.config import load_recipe

    directory = Path(directory)
    if (directory / "model.safetensors").is_file():
        checkpoint = directory.resolve()
        homes = (checkpoint.parent, checkpoint.parent.parent)
        run = next((home for home in homes if (home / "config.toml").is_file()), homes[0])
    else:
        checkpoint, run = find_checkpoint(directory, which), directory
    for name in ("config.toml", "tokenizer.json"):
        if not (run / name).is_file():
            raise CheckpointMissing(f"{run / name} is missing")
    snapshot = load_checkpoint(checkpoint)
    if "config" not in snapshot.metadata:
        raise CheckpointError(f"{checkpoint / 'model.safetensors'} is not a pynlm model")
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    config = RecurrentLMConfig.from_dict(json.loads(snapshot.metadata["config"]))
    if snapshot.state.get("tokenizer") != tokenizer.digest():
        raise CheckpointError(
            f"{run / 'tokenizer.json'} is not the vocabulary that {checkpoint} was trained with"
        )
    recipe = load_recipe(run / "config.toml")
    place = checkpoint / "model.safetensors"
    dtype, counts = recipe.train.dtype, tokenizer.counts
    model = make_model(config, dtype, snapshot.model, place, counts, device)
    return model, tokenizer, recipe


def make_model(
    config: RecurrentLMConfig,
    dtype: str,
    tensors: Tensors,
    path: Path,
    counts: NDArray[np.int64],
    device: str = "cpu",
) -> RecurrentLM:
    """The model of a checkpoint's tensors; CheckpointError, naming `path`, unless they fit."""
    from pynlm.heads.hierarchical import stored_tree
    from pynlm.models import RecurrentLM

    try:
        tree = stored_tree(tensors)
        model = RecurrentLM(config, dtype, counts=counts, tree=tree, device=device)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    check_parameters(model, tensors, path)
    model.load_state_dict(tensors)
    return model


def parse_tensors(data: bytes, path: Path) -> tuple[Tensors, dict[str, str]]:
    """Arrays and metadata of a safetensors file; CheckpointError when it is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        metadata = json.loads(header.get("pynlm", "{}"))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None
    return tensors, metadata


class RunLock:
    """Keeps two processes from training in one run folder; the kernel frees it at any death."""

    def __init__(self, run: Path) -> None:
        self._file = open(run / ".lock", "ab")  # noqa: SIM115 - held until `release`
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            raise CheckpointError(f"another process is training in {run}") from None

    def release(self) -> None:
        """Let others in."""
        self._file.close()


def _write_directory(directory: Path, snapshot: Snapshot) -> None:
    from safetensors.numpy import save

    directory.mkdir()
    metadata = {"format": MODEL_FORMAT, **snapshot.metadata}
    files: dict[str, dict[str, Any]] = {}
    for name, tensors, header in (
        ("model.safetensors", snapshot.model, metadata),
        ("training.safetensors", snapshot.training, {"format": FORMAT}),
    ):
        # One entry: the library writes several in random order; equal models are equal files.
        packed = {"pynlm": json.dumps(header, sort_keys=True)}
        host = {key: np.ascontiguousarray(to_host(x)) for key, x in tensors.items()}
        data = save(host, packed)
        _write_file(directory / name, data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    state = {"format": FORMAT, **snapshot.state, "files": files}
    text = json.dumps(state, indent=1, allow_nan=False) + "\n"
    _write_file(directory / "state.json", text.encode())
    fsync_folder(directory)


def _read_state(directory: Path) -> dict[str, Any]:
    path = directory / "state.json"
    if not directory.is_dir():
        raise CheckpointMissing(f"checkpoint {directory} does not exist")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory} is not a pynlm checkpoint: it has no state.json"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or no JSON file: {error}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {found!r}")
    for key, kind in _STATE.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path} is damaged: {key!r} is missing or of a wrong type")
    for name, facts in state["files"].items():
        if not isinstance(facts, dict) or not {"bytes", "sha256"} <= facts.keys():
            raise CheckpointError(f"{path} is damaged: 'files' says nothing of {name}")
    return state


def _is_complete(directory: Path) -> bool:
    try:
        files = _read_state(directory)["files"]
        return all((directory / n).stat().st_size == f["bytes"] for n, f in files.items())
    except (CheckpointError, OSError, KeyError):
        return False


def _serials(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]


def _link(run: Path, name: str, directory: Path) -> None:
    aside = run / f".{name}.new"
    aside.unlink(missing_ok=True)
    os.symlink(os.path.join("checkpoints", directory.name), aside)
    os.replace(aside, run / name)
    fsync_folder(run)


def _target(run: Path, name: str) -> str | None:
    """Name of the checkpoint that a link stands for, None where it leads nowhere."""
    path = run / name
    return path.resolve().name if path.exists() else None


def _prune(run: Path) -> None:
    kept = {_target(run, name) for name in ("last", "best")}
    folder = run / "checkpoints"
    for serial in _serials(folder):
        name = f"{serial:06d}"
        if name not in kept:
            shutil.rmtree(folder / name, ignore_errors=True)


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_error(run: Path, error: OSError) -> CheckpointWriteError:
    reason = error.strerror or str(error)
    if error.errno == errno.EPERM and not hasattr(os, "symlink"):
        reason = "this file system has no symbolic links"
    kept = "the checkpoint before it is unharmed" if (run / "last").exists() else "none was there"
    return CheckpointWriteError(
        error.errno,
        f"cannot save a checkpoint in {run}: {reason}; {kept}. "
        "Make room, then continue with --resume",
    )
