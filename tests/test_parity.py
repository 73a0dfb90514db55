"""`bench/parity.py` on a tiny text: every recipe, made small, follows torch; a wrong one fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynlm import set_num_threads
from pynlm.train.config import load_recipe, recipe_names
from pynlm.train.data import prepare

REPOSITORY = Path(__file__).parent.parent
STEPS = 12
LINES = 60  # several epochs in so many steps


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, which stands outside the package; one thread is enough for these sizes."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(REPOSITORY)
    from bench import parity

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_num_threads(1)  # tests/conftest.py puts it back
    yield parity
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words that depend on the one before, so that there is something to learn."""
    rng, lines, at = np.random.default_rng(1), [], 0
    for _ in range(LINES):
        words = []
        for _ in range(int(rng.integers(2, 9))):
            at = (3 * at + int(rng.integers(1, 3))) % 12
            words.append("abcdefghijkl"[at] * 2)
        lines.append(" ".join(words) + "\n")
    path = tmp_path_factory.mktemp("parity") / "text.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def overrides(name: str, text: Path, dtype: str) -> list[str]:
    """The recipe's own everything, but small, on `text`."""
    model = load_recipe(name).model
    square = model.embedding_size == model.hidden_sizes[0]
    return [
        "data.corpus=none",
        f'data.text=["{text}"]',
        f"model.embedding_size={7 if square else 5}",
        f"model.hidden_sizes={[7] * len(model.hidden_sizes)}",
        "train.batch_size=3",
        "train.bptt=9",
        f"train.dtype={dtype}",
    ]


@pytest.fixture
def follow(parity: Any, text: Path, tmp_path: Path) -> Callable[..., Any]:
    """`follow(name, dtype, *more overrides)` trains a small version of a recipe."""

    def run(name: str, dtype: str, *more: str) -> Any:
        recipe = parity.decide(name, [*overrides(name, text, dtype), *more])
        assert recipe.model.dropout_input == recipe.model.dropout_output == 0.0
        return parity.follow(recipe, prepare(recipe.data, tmp_path), STEPS, lambda *_: None)

    return run


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", recipe_names())
def test_recipe_follows_torch(
    name: str, dtype: str, parity: Any, follow: Callable[..., Any]
) -> None:
    found = follow(name, dtype)
    assert found.steps == STEPS
    assert found.follows(), found.shares(parity.DOUBLE)
    # Small tables: float32 sums lose nothing to speak of, so `clip_grad_norm_` must agree, too. In
    # float64 its 1e-6 beside the norm shows.
    assert dtype == "float64" or found.follows(parity.TORCH)
    assert found.losses[parity.OURS][-1] != found.losses[parity.OURS][0]


@pytest.mark.parametrize(
    "change",
    [
        ("optimiser.kind=momentum", "optimiser.lr=0.1", "optimiser.weight_decay=0.01"),
        ("optimiser.kind=momentum", "optimiser.lr=0.1", "optimiser.nesterov=true"),
        ("optimiser.kind=adamw", "optimiser.lr=0.01", "optimiser.weight_decay=0.1"),
        ("optimiser.kind=adagrad", "optimiser.lr=0.1", "train.clip_value=0.02"),
        ("train.clip_norm=none", "model.head_bias=false", "model.cell=rnn_relu"),
        ("model.cell=gru", "model.tied=true", "optimiser.kind=adam", "optimiser.lr=0.01"),
    ],
    ids=lambda change: ",".join(c.rpartition(".")[2] for c in change),
)
def test_what_no_recipe_uses_follows_too(
    change: tuple[str, ...], parity: Any, follow: Callable[..., Any]
) -> None:
    found = follow("zaremba-small", "float64", *change)
    assert found.follows(), found.shares(parity.DOUBLE)


@pytest.mark.parametrize("name", ["zaremba-small", "gru-small", "rnn-small", "default"])
def test_two_trained_biases_do_not_follow(
    name: str, parity: Any, follow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "train_one_bias", lambda module: None)
    found = follow(name, "float32")
    assert not found.follows() and not found.follows(parity.TORCH)


def test_sentences_are_refused(follow: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"recipe default: .* must be contiguous text"):
        follow("default", "float32", "data.batching=sentences")


def test_command_writes_page_record_and_plot(
    parity: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gru-small", "default"):
        sets = [x for change in overrides(name, text, "float32") for x in ("--set", change)]
        command = ["--recipes", name, "--steps", str(STEPS), "--out", str(tmp_path), *sets]
        assert parity.main(command) == 0
    assert f"step   {STEPS}/{STEPS}" in capsys.readouterr().out
    # The second run kept what the first one found.
    records = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert [r["recipe"] for r in records] == ["default", "gru-small"]
    for r in records:
        assert r["passed"] and r["steps"] == STEPS
        assert {len(losses) for losses in r["losses"].values()} == {STEPS}
        assert set(r["against"]) == {parity.DOUBLE, parity.TORCH}
    page = (tmp_path / "parity.md").read_text(encoding="utf-8")
    assert "| gru-small | 12 |" in page and "| pass |" in page and "(parity.png)" in page
    assert 0 < (tmp_path / "parity.png").stat().st_size < 150_000


def test_failure_shows(parity: Any, follow: Callable[..., Any], tmp_path: Path) -> None:
    good = follow("default", "float32")
    for wrong in (good.losses[parity.OURS][4] + 0.01, math.nan):
        ours = [*good.losses[parity.OURS]]
        ours[4] = wrong
        bad = replace(good, losses={**good.losses, parity.OURS: ours})
        assert not bad.follows()
        page = parity.write([bad], tmp_path).read_text(encoding="utf-8")
        assert "**fail**" in page and "not ≤ 0.0001" in page
