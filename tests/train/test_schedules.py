"""Learning-rate schedules against the rates that their sources print, and torch's plateau."""

from __future__ import annotations

import pytest

from pynlm.train.config import ScheduleConfig, load_recipe
from pynlm.train.schedules import Plateau, Step, make_schedule


def test_step_is_zarembas() -> None:
    recipe = load_recipe("zaremba-medium")
    schedule = make_schedule(recipe.schedule, recipe.optimiser.lr)
    # ptb_word_lm.py: lr_decay ** max(i + 1 - max_epoch, 0) for the 0-based epoch i.
    expected = [0.8 ** max(i + 1 - 6, 0) for i in range(39)]
    assert [schedule.rate(epoch) for epoch in range(39)] == pytest.approx(expected, rel=1e-12)


def test_step_stops_at_the_least_rate() -> None:
    schedule = Step(1.0, decay=0.1, start_epoch=1, min_lr=0.05)
    assert [schedule.rate(epoch) for epoch in range(4)] == [1.0, 0.1, 0.05, 0.05]


def test_plateau_divides_when_nothing_improves() -> None:
    schedule = Plateau(20.0, decay=0.25)
    rates = []
    for loss in (5.0, 4.0, 4.5, 3.9, 3.9, 3.95):
        rates.append(schedule.rate(0))
        schedule.observe(loss)
    assert rates == [20.0, 20.0, 20.0, 5.0, 5.0, 1.25]
    assert schedule.rate(0) == 0.3125


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_is_torchs(patience: int) -> None:
    torch = pytest.importorskip("torch")
    losses = [5.0, 4.0, 4.1, 4.2, 3.9, 3.95, 3.96, 3.97, 3.98, 3.99, 4.0, 3.8, 4.0, 4.0, 4.0]
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=20.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.25, patience=patience - 1, threshold=0.0
    )
    ours = Plateau(20.0, decay=0.25, patience=patience)
    for loss in losses:
        theirs.step(loss)
        ours.observe(loss)
        assert ours.rate(0) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)


def test_plateau_continues_from_its_state() -> None:
    one = Plateau(1.0, decay=0.5, patience=2, min_lr=0.1)
    assert one.state_dict()["best"] is None
    for loss in (3.0, 3.1):
        one.observe(loss)
    two = Plateau(1.0, decay=0.5, patience=2, min_lr=0.1)
    two.load_state_dict(one.state_dict())
    for loss in (3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8, 3.9):
        one.observe(loss)
        two.observe(loss)
        assert one.rate(0) == two.rate(0)
    assert one.rate(0) == 0.1


def test_constant_is_constant() -> None:
    schedule = make_schedule(ScheduleConfig(), 0.3)
    schedule.observe(1.0)
    assert schedule.rate(0) == schedule.rate(99) == 0.3
    schedule.load_state_dict(schedule.state_dict())
