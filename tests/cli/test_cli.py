"""The command line as its users meet it: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pynlm import _kernels
from pynlm.cli import _spread
from pynlm.language_model import LanguageModel

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def table(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_eval_json(pynlm_command: Run, run_folder: Path, texts: Path) -> None:
    done = pynlm_command("eval", run_folder, "--text", texts / "test.txt", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    result = LanguageModel.load(run_folder).evaluate(texts / "test.txt")
    assert LanguageModel.load(run_folder).model.parameters.packed
    assert record["perplexity"] == pytest.approx(result.perplexity, rel=1e-9)
    assert {
        "perplexity",
        "nats_per_token",
        "bits_per_token",
        "bits_per_character",
        "perplexity_without_eos",
        "perplexity_without_unk",
        "tokens",
        "words",
        "state_carried",
        "stripes",
    } <= set(record)
    assert (record["tokens"], record["words"], record["eos_tokens"]) == (14, 11, 3)
    assert record["unk_tokens"] == 1
    assert record["state_carried"] is True


def test_eval_table_and_stdin(pynlm_command: Run, run_folder: Path, texts: Path) -> None:
    done = pynlm_command("eval", run_folder, "--text", texts / "test.txt")
    assert done.returncode == 0, done.stderr
    for words in (
        "perplexity",
        "bits per character",
        "without <eos>",
        "without <unk>",
        "one stream",
    ):
        assert words in done.stdout
    assert done.stderr == ""
    piped = pynlm_command(
        "eval", run_folder, "--text", "-", "--json", stdin=(texts / "test.txt").read_text()
    )
    whole = pynlm_command("eval", run_folder, "--text", texts / "test.txt", "--json")
    assert json.loads(piped.stdout)["nats"] == json.loads(whole.stdout)["nats"]


def test_eval_stripes_are_labelled(pynlm_command: Run, run_folder: Path, texts: Path) -> None:
    done = pynlm_command("eval", run_folder, "--text", texts / "test.txt", "--stripes", 2)
    assert "2 stripes" in done.stdout
    assert "approximate" in done.stdout


def test_scores_sum_to_eval(pynlm_command: Run, run_folder: Path, texts: Path) -> None:
    for carry in ("--carry", "--no-carry"):
        record = json.loads(
            pynlm_command("eval", run_folder, "--text", texts / "test.txt", "--json", carry).stdout
        )
        done = pynlm_command("score", run_folder, texts / "test.txt", carry)
        rows = table(done.stdout)
        assert rows[0] == ["sentence", "token_index", "token", "log2_prob", "cumulative"]
        bits = -sum(float(row[3]) for row in rows[1:])
        assert bits * math.log(2) == pytest.approx(record["nats"], rel=1e-5)
        assert len(rows) == 1 + record["tokens"]
    assert [row[:3] for row in rows[1:]][5:8] == [
        ["1", "6", "<eos>"],
        ["2", "1", "<eos>"],
        ["3", "1", "the"],
    ]


def test_score_reads_stdin_and_writes_jsonl(pynlm_command: Run, run_folder: Path) -> None:
    text = "the cat\nthe dog sat\n"
    tsv = pynlm_command("score", run_folder, stdin=text).stdout
    assert tsv == pynlm_command("score", run_folder, "-", stdin=text).stdout
    done = pynlm_command("score", run_folder, "--json", stdin=text)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["tokens"] for record in records] == [
        ["the", "cat", "<eos>"],
        ["the", "dog", "sat", "<eos>"],
    ]
    last = [row for row in table(tsv) if row[0] == "2"][-1]
    assert records[1]["log2_prob"] == pytest.approx(float(last[4]), abs=2e-6)


def test_score_answers_line_by_line(run_folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pynlm", "score", str(run_folder), "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in ("the cat", "a dog"):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["tokens"] == [*line.split(), "<eos>"]


def test_generate(pynlm_command: Run, run_folder: Path) -> None:
    arguments = ("generate", run_folder, "--prompt", "the cat", "--tokens", 12, "--seed", 7)
    done = pynlm_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == pynlm_command(*arguments).stdout
    assert done.stdout.startswith("the cat")
    assert done.stdout.endswith("\n")
    text = LanguageModel.load(run_folder).generate("the cat", tokens=12, seed=7)
    assert done.stdout.rstrip("\n") == text.rstrip("\n")
    greedy = ("generate", run_folder, "--temperature", 0, "--top-k", 3, "--top-p", 0.9)
    assert pynlm_command(*greedy, "--seed", 1).stdout == pynlm_command(*greedy).stdout
    unknown = pynlm_command("generate", run_folder, "--prompt", "the zebra", "--tokens", 1)
    assert unknown.returncode == 0
    assert unknown.stderr == "note: not in the vocabulary, read as <unk>: zebra\n"


def test_export(
    pynlm_command: Run, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    done = pynlm_command("export", run_folder, "--out", path)
    assert done.returncode == 0, done.stderr
    size = len(LanguageModel.load(run_folder).tokenizer)
    assert done.stdout.splitlines() == [
        f"{path}: {path.stat().st_size:,} bytes",
        "in:  tokens [T, B], h.0, c.0",
        f"out: log_prob [T, B, {size}], h_last.0, c_last.0",
    ]
    made = onnx.load(path)
    assert [value.name for value in made.graph.input] == ["tokens", "h.0", "c.0"]
    folder = pynlm_command("export", run_folder, "--out", tmp_path)
    assert folder.returncode == 2
    assert folder.stderr == f"error: {tmp_path}: expected a file to write, got a folder\n"
    monkeypatch.setitem(sys.modules, "onnx", None)
    missing = pynlm_command("export", run_folder, "--out", path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: lm_to_onnx: the package onnx is needed")
    assert missing.stderr.endswith("pip install 'pynlm[onnx]'\n")


def test_info(pynlm_command: Run) -> None:
    done = pynlm_command("info")
    assert done.returncode == 0, done.stderr
    for words in ("pynlm", "Python", "NumPy", "instruction set", "threads", "pynlm.jax", "GPU"):
        assert f"\n{words} " in "\n" + done.stdout


def test_info_says_how_jax_calls(pynlm_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pynlm.jax.calls_by` does."""
    pytest.importorskip("jax")
    none: dict[str, object] = {}
    for handlers, wanted, expected in (
        ({"lstm_forward": None}, "", "by XLA's foreign function interface (PYNLM_JAX chooses)"),
        ({"lstm_forward": None}, "callback", "by a host callback (PYNLM_JAX chooses)"),
        (none, "", "by a host callback: built without XLA's headers"),
        (none, "ffi", "error: PYNLM_JAX must be callback in this build of pynlm, which was "
         "made without XLA's headers, got 'ffi'"),
        (none, "fii", "error: PYNLM_JAX must be ffi or callback, got 'fii'"),
    ):  # fmt: skip
        monkeypatch.setattr(_kernels, "xla_handlers", lambda handlers=handlers: handlers)
        monkeypatch.setenv("PYNLM_JAX", wanted)
        assert f"\n{'pynlm.jax':<16} {expected}\n" in pynlm_command("info").stdout
    monkeypatch.setitem(sys.modules, "jax", None)
    assert f"\n{'pynlm.jax':<16} JAX is not installed\n" in pynlm_command("info").stdout


def test_errors_are_one_line(
    pynlm_command: Run, run_folder: Path, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes(b"the cat\nthe caf\xe9\n")
    cases = [
        (("eval", tmp_path / "nothing", "--text", texts / "test.txt"), "nothing"),
        (("eval", run_folder, "--text", tmp_path / "missing.txt"), "missing.txt"),
        (("eval", run_folder, "--text", tmp_path), "folder"),
        (("eval", run_folder, "--text", tmp_path / "empty.txt"), "empty"),
        (("eval", run_folder, "--text", tmp_path / "latin.txt"), "line 2, byte offset 15"),
        (("eval", run_folder), "either --text FILE or --corpus NAME"),
        (("eval", run_folder, "--corpus", "nonsense"), "nonsense"),
        (("eval", run_folder, "--text", texts / "test.txt", "--stripes", 99), "99"),
        (("score", run_folder, tmp_path / "missing.txt"), "missing.txt"),
        (("score", run_folder, tmp_path / "latin.txt"), "line 2, byte offset 15"),
        (("generate", run_folder, "--top-p", 1.5), "top_p must be in (0, 1], got 1.5"),
        (("generate", run_folder, "--device", "cuda"), "pip install 'pynlm[cuda]'"),
        (("train", "--recipe", "defualt"), "did you mean 'default'"),
        (("train", "--text", texts / "train.txt", "--set", "train.bptx=3"), "train.bptt"),
        (("train", "--device", "cuda"), "CuPy"),
        (
            ("train", "--text", texts / "train.txt", "--out", tmp_path / "short"),
            "the corpus is shorter than one batch",
        ),
    ]
    for arguments, expected in cases:
        done = pynlm_command(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stderr.startswith("error: "), (arguments, done.stderr)
        assert done.stderr.count("\n") == 1, (arguments, done.stderr)
        assert expected in done.stderr, (arguments, done.stderr)


def test_a_damaged_model_is_an_error(
    pynlm_command: Run, run_folder: Path, texts: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(run_folder), str(copy)], check=True)
    weights = (copy / "best" / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-100])
    done = pynlm_command("eval", copy, "--text", texts / "test.txt")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "model.safetensors" in done.stderr


def test_usage_errors_exit_2(pynlm_command: Run) -> None:
    done = pynlm_command("evaluate")
    assert done.returncode == 2
    assert "evaluate" in done.stderr
    assert pynlm_command("--help").returncode == 0


def test_a_reader_that_leaves_is_no_error(run_folder: Path) -> None:
    command = f"yes 'the cat' | head -3000 | {sys.executable} -m pynlm score {run_folder} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("sentence\t")
    assert done.stderr == ""


def test_ctrl_c_exits_130(run_folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pynlm", "score", str(run_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("the cat\n")
        process.stdin.flush()
        while "<eos>" not in process.stdout.readline():
            pass
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"


def test_ctrl_c_in_training_saves_and_says_how_to_go_on(
    pynlm_command: Run, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "pynlm", "train", "--text", str(texts / "train.txt")),
            *("--out", str(out), "--set", "data.level=word", "train.epochs=100000"),
            *("train.batch_size=2", "train.bptt=5", "model.hidden_sizes=[8]"),
            *("schedule.early_stop=0", "train.checkpoint_seconds=0.2"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        deadline = time.monotonic() + 30
        while not (out / "last").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130, printed
    assert f"pynlm train --resume --out {out}" in printed
    done = pynlm_command("eval", out, "--text", texts / "test.txt", "--checkpoint", "last")
    assert done.returncode == 0, done.stderr


def test_text_takes_several_files() -> None:
    line = ["train", "--text", "a", "b", "c", "--set", "x=1", "y=2", "--out", "d", "--quiet"]
    assert _spread(line, ("--text", "--set")) == [
        *("train", "--text", "a", "--text", "b", "--text", "c"),
        *("--set", "x=1", "--set", "y=2", "--out", "d", "--quiet"),
    ]


def test_heads_that_sample(pynlm_command: Run, texts: Path, tmp_path: Path) -> None:
    """Options as words, log Z in the report of one, a refusal by name of the other."""
    text = {name: texts / f"{name}.txt" for name in ("train", "valid")}
    few = {"model.hidden_sizes": [8], "train.epochs": 1, "train.batch_size": 2, "train.bptt": 5}
    small = [part for key, value in few.items() for part in ("--set", f"{key}={value}")]
    for kind, more in {"nce": ["head.log_z=learned"], "negative-sampling": []}.items():
        chosen = [f"head.kind={kind}", "head.samples=4", "head.sampler=unigram", *more]
        options = [part for one in chosen for part in ("--set", one)]
        given = ["--text", text["train"], "--valid", text["valid"], "--out", tmp_path / kind]
        done = pynlm_command("train", *given, *small, *options)
        assert done.returncode == 0, done.stderr
    done = pynlm_command("eval", tmp_path / "nce", "--text", text["valid"], "--json")
    assert {"log_z_mean", "log_z_variance"} <= set(json.loads(done.stdout))
    done = pynlm_command("eval", tmp_path / "negative-sampling", "--text", text["valid"])
    assert done.returncode != 0 and done.stdout == ""
    assert "a model trained by NegativeSampling has no perplexity" in done.stderr
    done = pynlm_command("train", "--text", text["train"], "--set", "head.samples=9", *small)
    assert "samples is not defined for kind 'full'" in done.stderr
