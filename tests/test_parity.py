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

    def run(name: str, dtype: str, *more: str, steps: int = STEPS) -> Any:
        recipe = parity.decide(name, [*overrides(name, text, dtype), *more])
        assert recipe.model.dropout_input == recipe.model.dropout_output == 0.0
        return parity.follow(recipe, prepare(recipe.data, tmp_path), steps, lambda *_: None)

    return run


def failing(found: Any) -> list[str]:
    """The checks that do not hold, in words."""
    return [str(check) for check in found.checks() if not check.holds]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", recipe_names())
def test_recipe_follows_torch(
    name: str, dtype: str, parity: Any, follow: Callable[..., Any]
) -> None:
    found = follow(name, dtype)
    assert found.steps == STEPS
    assert found.follows(), failing(found)
    # Small tables: float32 sums lose nothing to speak of.
    assert found.norm_error is None or found.norm_error < 1e-6
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
    change: tuple[str, ...], follow: Callable[..., Any]
) -> None:
    found = follow("zaremba-small", "float64", *change)
    assert found.follows(), failing(found)
    assert (found.norm_error is None) == ("train.clip_norm=none" in change)


@pytest.mark.parametrize("name", ["zaremba-small", "gru-small", "rnn-small", "default"])
def test_two_trained_biases_do_not_follow(
    name: str, parity: Any, follow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "train_one_bias", lambda module: None)
    found = follow(name, "float32")
    assert not found.checks()[0].holds


def mistaken(right: Any, mistake: str) -> Any:
    """`BPTT` with a mistake."""

    class Mistaken(right):  # type: ignore[misc]
        def __init__(self, model: Any, optimiser: Any, *others: Any) -> None:
            super().__init__(model, optimiser, *others)
            update = optimiser.step

            def step(**given: float) -> None:
                if mistake == "gradient":
                    # Of another unit. A factor would do nothing to Adam.
                    grad = model.parameters["recurrent.0.w_hh"].grad
                    grad[...] = grad[::-1].copy()
                update(**given)

            optimiser.step = step

        def step(self, batch: Any, *, lr: float, step: int) -> Any:
            if mistake == "state":
                self.state = None
            if mistake == "rate" or (mistake == "late rate" and step > 10):
                lr *= 1.01 if mistake == "rate" else 1.5
            return super().step(batch, lr=lr, step=step)

    return Mistaken


@pytest.mark.parametrize("mistake", ["rate", "gradient", "state"])
@pytest.mark.parametrize("name", ["zaremba-small", "gru-small", "rnn-small", "default"])
def test_mistake_does_not_follow(
    name: str,
    mistake: str,
    parity: Any,
    follow: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parity, "BPTT", mistaken(parity.BPTT, mistake))
    # In double: seven units learn so little in ten steps that float32's bound has room for it.
    first, *_, loss, gradient = follow(name, "float64").checks()
    assert not first.holds
    # From torch's weights and state each time, only what a single pass computes can be wrong.
    assert loss.holds == (mistake != "state")
    assert gradient.holds == (mistake == "rate")


@pytest.mark.parametrize("name", ["zaremba-small", "default"])
def test_mistake_after_the_first_steps_does_not_follow(
    name: str, parity: Any, follow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follow(name, "float32", steps=60).follows()
    monkeypatch.setattr(parity, "BPTT", mistaken(parity.BPTT, "late rate"))
    found = follow(name, "float32", steps=60)
    first, later, *_ = found.checks()
    assert first.holds and not later.holds, found.checks()


def test_nudge_moves_each_weight_to_a_neighbour(parity: Any) -> None:
    weights = {"a": np.linspace(-2, 2, 101, dtype=np.float32), "b": np.ones((3, 4))}
    nudged = parity.nudge(weights)
    for name, before in weights.items():
        after = nudged[name]
        assert after.dtype == before.dtype
        up, down = np.nextafter(before, np.inf), np.nextafter(before, -np.inf)
        assert ((after == up) | (after == down)).all()
        assert (after == up).any() and (after == down).any()
        assert (after == parity.nudge(weights)[name]).all()


@pytest.fixture
def made(parity: Any) -> Callable[..., Any]:
    """A record of 300 steps in which torch's loss is 4, and others differ by shares of it."""

    def make(first: float, later: float, nudged: float, end: float | None = None) -> Any:
        def losses(first: float, later: float, end: float) -> list[float]:
            # To both sides, so that the running mean is torch's unless `end` says otherwise.
            signs = [(-1) ** step for step in range(300)]
            found = [4 * (1 + s * (first if i < 10 else later)) for i, s in enumerate(signs)]
            return [*found[:250], *[4 * (1 + end)] * 50] if end else found

        contenders = {
            parity.OURS: losses(first, later, end or 0.0),
            parity.TORCH: losses(0.0, 0.0, 0.0),
            parity.NUDGED: losses(0.0, nudged, 0.0),
        }
        in_step = {"loss": [0.0] * 300, "gradient": [0.0] * 300}
        return parity.Parity("made", "", "float32", contenders, in_step, None, "")

    return make


@pytest.mark.parametrize(
    ("first", "later", "nudged", "holds"),
    [
        (0.9e-4, 0.9e-2, 0.0, (True, True, True)),
        (1.1e-4, 0.0, 0.09, (False, True, True)),
        (0.0, 1.1e-2, 0.5e-2, (True, False, True)),
        (0.0, 5.9e-2, 3e-2, (True, True, True)),  # torch is as far from itself
        (0.0, 6.1e-2, 3e-2, (True, False, True)),
        (0.0, 1.1e-2, math.nan, (True, False, True)),  # torch that breaks down measures nothing
        (0.0, math.nan, 1e-2, (True, False, False)),
        (0.0, math.nan, math.nan, (True, False, False)),
    ],
)
def test_criterion(
    first: float, later: float, nudged: float, holds: tuple[bool, ...], made: Callable[..., Any]
) -> None:
    found = made(first, later, nudged)
    assert tuple(check.holds for check in found.checks()) == (*holds, True, True)
    assert found.follows() == all(holds)


@pytest.mark.parametrize(("kind", "bound"), [("loss", 1e-5), ("gradient", 1e-3)])
def test_criterion_in_step(kind: str, bound: float, made: Callable[..., Any]) -> None:
    found = made(0.0, 0.0, 0.0)
    for difference, holds in ((0.9 * bound, True), (1.1 * bound, False), (math.nan, False)):
        found.in_step[kind][170] = difference
        assert found.follows() == holds


def test_where_torch_does_not_follow_itself_only_single_steps_count(
    made: Callable[..., Any],
) -> None:
    found = made(1.1e-4, 0.9, 0.11)
    assert [check.asked for check in found.checks()] == [False] * 3 + [True] * 2
    assert found.follows()
    found.in_step["gradient"][299] = 1.1e-3
    assert not found.follows()
    assert not made(1.1e-4, 0.9, 0.09).follows()
    # a torch that breaks down excuses nothing
    assert not made(1.1e-4, 0.9, math.nan).follows()


def test_criterion_of_the_running_mean(made: Callable[..., Any]) -> None:
    assert made(0.0, 0.0, 1e-2, end=0.9e-2).follows()
    # The RMS is within twice torch's 1 %; torch's mean at the end has not moved, ours has.
    found = made(0.0, 0.0, 1e-2, end=1.1e-2)
    assert [check.holds for check in found.checks()] == [True, True, False, True, True]


def test_sentences_are_refused(follow: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"recipe default: .* must be contiguous text"):
        follow("default", "float32", "data.batching=sentences")


def test_command_writes_page_record_and_plot(
    parity: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A record of other contenders is no result any more.
    old = {"recipe": "rnn-small", "losses": {"pynlm": [1.0], "torch": [1.0]}}
    (tmp_path / "parity.json").write_text(json.dumps([old]), encoding="utf-8")
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
        assert [check["holds"] for check in r["checks"]] == [True] * 5
    page = (tmp_path / "parity.md").read_text(encoding="utf-8")
    assert "| gru-small | 12 |" in page and "| pass |" in page and "(parity.png)" in page
    assert 0 < (tmp_path / "parity.png").stat().st_size < 150_000
    # Without a recipe the page is written anew from the records.
    (tmp_path / "parity.md").unlink()
    assert parity.main(["--recipes", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "parity.md").read_text(encoding="utf-8") == page


def test_failure_shows(parity: Any, follow: Callable[..., Any], tmp_path: Path) -> None:
    good = follow("default", "float32")
    for wrong in (good.losses[parity.OURS][4] + 0.01, math.nan):
        ours = [*good.losses[parity.OURS]]
        ours[4] = wrong
        bad = replace(good, losses={**good.losses, parity.OURS: ours})
        assert not bad.follows()
        page = parity.write([bad], tmp_path).read_text(encoding="utf-8")
        assert "**fail**" in page and "**not** ≤ 1.0e-04" in page
