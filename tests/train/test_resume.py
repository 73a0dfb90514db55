"""A run that is broken off and resumed gives the bits of one that is not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm.kernels import get_num_threads, set_num_threads
from pynlm.train import CheckpointMissing, Progress, ResumeError, Trainer
from pynlm.train.log import Reporter, read_log

Make = Callable[..., Trainer]


class Broken(Exception):
    """Stands for whatever ends a process."""


def break_at(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise Broken

    return on_step


def check_same_run(one: Path, two: Path, weights_of: Callable[..., str]) -> None:
    """Weights, optimiser, position and log of two finished runs are the same."""
    for which in ("last", "best"):
        assert weights_of(one, which) == weights_of(two, which)
        names = [(run / which / "training.safetensors").read_bytes() for run in (one, two)]
        assert names[0] == names[1]
    states = [json.loads((run / "last" / "state.json").read_text()) for run in (one, two)]
    for state in states:
        state["position"].pop("seconds")
    assert states[0]["position"] == states[1]["position"]
    assert states[0]["schedule"] == states[1]["schedule"]
    logs = [read_log(run / "log.jsonl") for run in (one, two)]
    times = ("seconds", "valid_seconds", "tokens_per_second")
    events = [
        [
            {k: v for k, v in event.items() if k not in times}
            for event in log
            if event["event"] in ("step", "epoch", "finished")
        ]
        for log in logs
    ]
    assert events[0] == events[1]


RECIPES: list[dict[str, Any]] = [
    {},
    {"data.batching": "sentences", "optimiser.kind": "momentum", "optimiser.lr": 0.3},
    {"model.cell": "gru", "train.loss": "sum_time", "optimiser.kind": "sgd"},
    {"model.cell": "rnn_tanh", "model.tied": True, "optimiser.kind": "adagrad"},
    {"head.kind": "hierarchical"},
]


@pytest.mark.parametrize("overrides", RECIPES, ids=str)
def test_broken_off_and_resumed_is_bit_identical(
    make: Make, weights_of: Callable[..., str], tmp_path: Path, overrides: dict[str, Any]
) -> None:
    if overrides.get("model.tied"):
        overrides = {**overrides, "model.hidden_sizes": [9, 6]}
    whole = make("whole", overrides={**overrides, "train.checkpoint_seconds": 1e9}).run()
    assert whole.stopped == "finished"
    # Saved after every step, and broken off in each third of the run, once after an epoch's end.
    every = {**overrides, "train.checkpoint_seconds": 0}
    steps = whole.steps // 3
    with pytest.raises(Broken):
        make("broken", overrides=every, on_step=break_at(3)).run()
    for step in (steps + 1, 2 * steps - 1):
        with pytest.raises(Broken):
            make("broken", overrides=every, resume=True, on_step=break_at(step)).run()
    resumed = make("broken", recipe=None, text=None, valid=None, test=None, resume=True).run()
    assert resumed.valid == whole.valid
    assert resumed.test == whole.test
    check_same_run(tmp_path / "whole", tmp_path / "broken", weights_of)


def test_steps_after_the_checkpoint_are_done_again(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    make("whole").run()
    with pytest.raises(Broken):  # saved at the end of epoch 1 only, well before step 40
        make("broken", on_step=break_at(40)).run()
    log = read_log(tmp_path / "broken" / "log.jsonl")
    assert log[-1]["step"] == 40
    make("broken", resume=True).run()
    check_same_run(tmp_path / "whole", tmp_path / "broken", weights_of)


def test_killed_before_the_first_checkpoint_starts_again(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    make("whole").run()
    with pytest.raises(Broken):
        make("broken", on_step=break_at(2)).run()
    assert not (tmp_path / "broken" / "last").exists()
    make("broken", recipe=None, text=None, valid=None, test=None, resume=True).run()
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "broken")


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    make: Make, weights_of: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("whole").run()

    def press(progress: Progress) -> None:
        if progress.step == 30:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stopped = make("broken", on_step=press, quiet=False).run()
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.interrupted
    assert stopped.steps == 30
    assert stopped.valid is not None
    said = capsys.readouterr().out
    assert said.count("Ctrl-C: ") == 1
    assert said.index("Ctrl-C: ") < said.index("interrupted after step 30; saved in")
    assert "validation perplexity of the model as it stands" in said
    assert f"pynlm train --resume --out {tmp_path / 'broken'}" in said
    make("broken", resume=True).run()
    check_same_run(tmp_path / "whole", tmp_path / "broken", weights_of)


@pytest.mark.parametrize("line", ["epoch 2/3", "unigram"])
def test_ctrl_c_in_a_half_printed_line(
    make: Make, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """The handler prints nothing itself: neither stdout nor the bar may be entered twice."""
    printing, lines = False, []

    def say(self: Reporter, text: str) -> None:
        nonlocal printing
        assert not printing
        printing = True
        if text.startswith(line):
            os.kill(os.getpid(), signal.SIGINT)
        lines.append(text)
        printing = False

    monkeypatch.setattr(Reporter, "say", say)
    result = make().run()
    if line == "unigram":  # all is done and saved
        assert result.stopped == "finished"
        return
    assert (result.stopped, result.epochs) == ("interrupted", 2)
    heads = [text.split()[0] for text in lines]
    assert heads.index("Ctrl-C:") == heads.index("interrupted") - 1


def test_ctrl_c_during_validation_is_heard_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pynlm.evaluate import evaluate_stream

    said = []

    def pressed(*arguments: Any, progress: Callable[[int], None], **options: Any) -> Any:
        if not said:
            os.kill(os.getpid(), signal.SIGINT)
        found = evaluate_stream(*arguments, progress=progress, **options)
        said.append(capsys.readouterr().out)
        return found

    monkeypatch.setattr("pynlm.train.heldout.evaluate_stream", pressed)
    result = make(quiet=False).run()
    assert "Ctrl-C: " in said[0]
    assert "Ctrl-C: " not in said[1]
    # The epoch that was being validated counts.
    assert (result.stopped, result.epochs) == ("interrupted", 1)


def test_ctrl_c_twice_stops_at_once(make: Make, tmp_path: Path) -> None:
    def press(progress: Progress) -> None:
        if progress.step == 30:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(on_step=press).run()
    assert (tmp_path / "run" / "last" / "model.safetensors").is_file()


def test_threads_do_not_change_the_bits(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    before = get_num_threads()
    wide = {"model.hidden_sizes": [64, 48], "train.epochs": 1}
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            make(f"threads{threads}", overrides=wide).run()
    finally:
        set_num_threads(before)
    assert weights_of(tmp_path / "threads1") == weights_of(tmp_path / "threads2")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_change_the_bits(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    wide = {"model.hidden_sizes": [64, 48], "train.epochs": 1}
    make("parent", overrides=wide).run()  # the parent's threads are awake now
    child = os.fork()
    if not child:
        code = 1
        try:
            make("child", overrides=wide).run()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert weights_of(tmp_path / "parent") == weights_of(tmp_path / "child")


def test_resuming_a_finished_run_reports_it_again(make: Make) -> None:
    first = make().run()
    again = make(resume=True).run()
    assert (again.valid, again.test, again.steps) == (first.valid, first.test, first.steps)


def test_more_epochs_may_be_asked_for(
    make: Make, weights_of: Callable[..., str], tmp_path: Path
) -> None:
    make("whole", overrides={"train.epochs": 4}).run()
    make("longer", overrides={"train.epochs": 2}).run()
    make("longer", recipe=None, resume=True, overrides={"train.epochs": 4}).run()
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "longer")


def test_other_settings_are_refused_by_name(make: Make, texts: dict[str, Path]) -> None:
    make().run()
    with pytest.raises(ResumeError, match=r"train.bptt was 6, now 7; optimiser.lr was 0.02, now"):
        make(resume=True, overrides=["train.bptt=7", "optimiser.lr=0.5"])
    with pytest.raises(ResumeError, match=r"train.seed was 1, now 2"):
        make(resume=True, seed=2)
    with pytest.raises(ResumeError, match=r"data.text was .*text.txt.* now .*valid.txt"):
        make(resume=True, text=texts["valid"])
    with pytest.raises(ResumeError, match=r"data.min_count was 1, now 3"):
        make(recipe=None, resume=True, overrides=["data.min_count=3"])
    with pytest.raises(FileExistsError, match=r"already holds a run; continue it with resume"):
        make()


def test_a_config_edited_by_hand_is_refused(make: Make, tmp_path: Path) -> None:
    make().run()
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("bptt = 6", "bptt = 5"))
    with pytest.raises(ResumeError, match=r"train.bptt was 6, now 5"):
        make(recipe=None, resume=True).run()


def test_another_vocabulary_is_refused(make: Make, tmp_path: Path) -> None:
    make().run()
    make("other", overrides={"data.min_count": 2, "data.max_size": 8}).run()
    place = "tokenizer.json"
    (tmp_path / "run" / place).write_bytes((tmp_path / "other" / place).read_bytes())
    with pytest.raises(ResumeError, match=r"the vocabulary .*tokenizer.json is not the one"):
        make(resume=True).run()


def test_a_changed_text_is_refused(make: Make, tmp_path: Path, texts: dict[str, Path]) -> None:
    text = tmp_path / "mine.txt"
    text.write_bytes(texts["text"].read_bytes())
    make(text=text).run()
    with open(text, "a", encoding="utf-8") as file:
        file.write("the cat sat\n")
    with pytest.raises(ResumeError, match=r"the text of .* has changed .*train had [\d,]+ tokens"):
        make(text=text, resume=True).run()


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"holds no run"):
        Trainer(out=tmp_path / "none", resume=True)
    with pytest.raises(ResumeError, match=r"say which run to continue"):
        Trainer(resume=True)


def test_token_ids_train_and_resume(tmp_path: Path, tiny: dict[str, Any]) -> None:
    ids = np.arange(600) * 7 % 31
    arguments: dict[str, Any] = {"out": tmp_path / "run", "quiet": True}
    with pytest.raises(Broken):
        Trainer(tiny, text=ids, on_step=break_at(60), **arguments).run()
    result = Trainer(resume=True, **arguments).run()
    whole = Trainer(tiny, text=ids, out=tmp_path / "whole", quiet=True).run()
    assert result.valid == whole.valid
    assert result.recipe.data.level == "integer"
