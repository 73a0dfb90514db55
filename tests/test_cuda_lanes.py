"""Lanes: what runs side by side is ordered where it must be, and computes the same.

`pynlm.testing.races` looks on; that it sees what is missing is tested first.
"""

from __future__ import annotations

import doctest
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pynlm.arrays import to_host
from pynlm.cuda import waves
from pynlm.cuda.lanes import Lanes
from pynlm.layers import GRU, LSTM, RNN, Bidirectional, Context, Parameters, RecurrentOptions, stack
from pynlm.layers.convert import RowOrder
from pynlm.layers.dropout import Dropout
from pynlm.layers.pool import Pool, pool_on
from pynlm.layers.stack import Stack
from pynlm.testing import assert_close, assert_same_bits, races
from pynlm.testing.emulated import EmulatedDevice, StrictDevice, emulation, has_card
from pynlm.testing.races import Race, timeline
from pynlm.testing.tolerances import CLOSED_FORM

T, B, I, H = 6, 4, 5, 6


@pytest.fixture
def device() -> Iterator[StrictDevice]:
    with emulation(StrictDevice(processors=6)) as found:
        yield found


# ---- the detector


def test_examples() -> None:
    for module in (races, stack):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def double(device: StrictDevice, y: Any, x: Any) -> None:
    """A kernel that reads x and writes y."""
    device.launch(
        "dropout/dropout.cu", "dropout", 1, real=x.dtype, y=y, x=x, T=1, B=1, D=x.size, scale=2.0,
        threshold=0, seed=0, step=0, purpose=0, time0=0, locked=False,
    )  # fmt: skip


OPERATIONS: dict[str, Callable[[StrictDevice, Any, Any], Any]] = {
    "dropout": double,
    "matmul": lambda device, y, x: device.matmul(y.reshape(1, 4), x.reshape(1, 4), device.square),
    "add": lambda device, y, x: np.add(x, x, out=y),
    "setitem": lambda device, y, x: y.__setitem__(slice(None), x),
    "copyto": lambda device, y, x: device.xp.copyto(y, x),
    "iadd": lambda device, y, x: y.__iadd__(x),
    "getitem": lambda device, y, x: y.__setitem__(..., x[device.order]),
    "take": lambda device, y, x: y.__setitem__(..., x.take(device.order)),
    "get": lambda device, y, x: y.set(x.get()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_missing_wait_is_found(device: StrictDevice, name: str) -> None:
    """Of an operation that reads x and writes y, in whichever order, by name."""
    device.square = device.zeros((4, 4), np.float32)
    device.order = device.bring(np.arange(4))
    operation = OPERATIONS[name]

    def arrays() -> list[Any]:
        return [device.zeros((4,), np.float32) for _ in range(3)]

    def race(first: Callable[[], Any], second: Callable[[], Any], *, waits: bool) -> None:
        with device.fork(2) as lanes:
            with lanes[0]:
                first()
                event = lanes.mark()
            with lanes[1]:
                if waits:
                    lanes.wait(event)
                second()

    for waits in (True, False):
        x, y, z = arrays()
        for first, second in [
            (lambda: x.fill(1), lambda: operation(device, y, x)),  # noqa: B023
            (lambda: operation(device, y, x), lambda: x.fill(1)),  # noqa: B023
            (lambda: operation(device, y, x), lambda: z.__iadd__(y)),  # noqa: B023
            (lambda: z.__iadd__(y), lambda: operation(device, y, x)),  # noqa: B023
        ]:
            if waits:
                race(first, second, waits=True)
                continue
            with pytest.raises(Race, match="unordered"):
                race(first, second, waits=False)
    x, y, z = arrays()
    race(lambda: operation(device, y, x), lambda: operation(device, z, x), waits=False)
    parts = device.zeros((8,), np.float32)
    race(
        lambda: operation(device, parts[:4], x), lambda: operation(device, parts[4:], x),
        waits=False,
    )  # fmt: skip


def test_a_race_is_named(device: StrictDevice) -> None:
    x, y = (device.zeros((3,), np.float32) for _ in range(2))
    with pytest.raises(Race) as caught, device.fork(2) as lanes:
        with lanes[0]:
            double(device, x, y)
        with lanes[1]:
            y.fill(0)
    assert str(caught.value) == "fill on lane 1 writes what dropout on lane 0 reads, unordered"


def test_memory_is_not_used_again_too_early(device: StrictDevice) -> None:
    """A lane lets go of what another reads, and allocates."""
    y = device.zeros((3,), np.float32)
    for held in (True, False):

        def run(held: bool = held) -> None:
            with device.fork(2) as lanes:
                with lanes[0]:
                    x, made = device.zeros((3,), np.float32), lanes.mark()
                with lanes[1]:
                    lanes.wait(made, *([x] if held else []))
                    double(device, y, x)
                with lanes[0]:
                    del x
                    device.zeros((3,), np.float32)

        if held:
            run()
        else:
            with pytest.raises(Race, match=r"on lane 0 may get the memory .* dropout on lane 1"):
                run()


def test_the_forked_stream_is_left_alone(device: StrictDevice) -> None:
    x = device.zeros((3,), np.float32)
    for work in (lambda: x.fill(0), lambda: device.zeros((3,), np.float32)):
        with pytest.raises(Race, match="whose lanes are not joined"), device.fork(2):
            work()
    x.fill(0)


@pytest.mark.parametrize("missing", ["fork", "join"])
def test_fork_and_join_wait(
    device: StrictDevice, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = device.zeros((3,), np.float32)
    wait = device.wait

    def some(event: Any) -> None:
        if (timeline.current == races.MAIN) != (missing == "join"):
            wait(event)

    monkeypatch.setattr(device, "wait", some)
    x.fill(1)
    with pytest.raises(Race, match="unordered"):
        with device.fork(2) as lanes, lanes[0]:
            x.fill(2)
        x.fill(3)


def test_lanes_share_the_card(device: StrictDevice) -> None:
    """Also after an error; a fork within a fork is one lane; no more lanes than processors."""
    assert (device.lanes, device.share) == (1, 6)
    with pytest.raises(ZeroDivisionError), device.fork(2) as lanes, lanes[1]:
        assert (len(lanes), device.share, timeline.current) == (2, 3, "lane 1")
        with device.fork(3) as inner, inner[2]:
            assert (len(inner), device.share, timeline.current) == (1, 3, "lane 1")
            inner.wait(inner.mark(), 1)
            inner.hold(1)
        assert device.share == 3
        raise ZeroDivisionError
    assert (device.lanes, device.share, timeline.current) == (1, 6, races.MAIN)
    assert not lanes._held
    with device.fork(9) as lanes:
        assert (len(lanes), device.share) == (6, 1)
    with device.fork(1) as lanes:
        assert (len(lanes), device.share) == (1, 6)
    with pytest.raises(ValueError, match="cannot be on 3 processors"), device.fork(2):
        device.launch("optim/clip.cu", "clip_values", 4, cooperative=True, x=None, n=0, limit=1.0)


# ---- what runs side by side


def layers_of(units: int, depth: int = 2, **options: Any) -> list[LSTM]:
    chosen = RecurrentOptions(**options)
    sizes = [units, *[chosen.projection or units] * depth]
    specs = [
        s for i in range(depth) for s in LSTM.specs(f"{i}", sizes[i], units, options=chosen)
    ]  # fmt: skip
    parameters = Parameters(specs)
    return [LSTM(parameters, f"{i}", chosen, i) for i in range(depth)]


@pytest.mark.parametrize("math", ["float32", "tf32", "bf16"])
def test_what_waits_runs_side_by_side(math: str) -> None:
    """Few units, few rows, long sequences, on as many multiprocessors as an H200 has."""
    pool = Pool(EmulatedDevice(processors=132))
    with pool.computing_in(math):
        small, large = layers_of(256), layers_of(1500)
        lanes, chunks = pool.waves(small, 512, 16)
        assert lanes == 2 and chunks > 2
        assert pool.waves(small, 512, 16) == (lanes, chunks)
        assert pool.waves(layers_of(128, depth=4), 2048, 16)[0] == 4
        for layers, time, batch in [
            (small[:1], 512, 16), (small, 8, 16), (small, 35, 16), (large, 35, 20),
            (large, 512, 128), (small, 0, 16), (small, 512, 0),
        ]:  # fmt: skip
            assert pool.waves(layers, time, batch) == (1, 1)
        assert pool.pair(small, 35, 16) == 2
        assert pool.pair(small, 0, 16) == pool.pair(small, 35, 0) == 1
        assert pool.pair(large, 35, 128) == 1


def test_two_directions_of_different_options() -> None:
    """Either kind gains by lanes, but the slower one lasts nearly as long as both by turns."""
    pool = Pool(EmulatedDevice(processors=132))
    plain, dropped = layers_of(512), layers_of(512, weight_drop=0.5)
    assert pool.pair(plain, 35, 64) == pool.pair(dropped, 35, 64) == 2
    for layers in (plain[0], dropped[1]), (dropped[0], plain[1]):
        assert pool.pair(layers, 35, 64) == 1


def test_where_nothing_runs_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU; one multiprocessor; turned off; layers too large for a part of the card."""
    small = layers_of(256)
    for pool in (Pool(), Pool(EmulatedDevice(processors=1))):
        assert pool.waves(small, 512, 16) == (1, 1) and pool.pair(small, 512, 16) == 1
    monkeypatch.setenv("PYNLM_CUDA_LANES", "1")
    whole = Pool(EmulatedDevice(processors=132))
    assert whole.waves(small, 512, 16) == (1, 1) and whole.pair(small, 512, 16) == 1
    monkeypatch.setenv("PYNLM_CUDA_LANES", "4")
    with pytest.raises(ValueError, match=r"PYNLM_CUDA_LANES must be 1 .* got '4'"):
        whole.pair(small, 512, 16)
    monkeypatch.delenv("PYNLM_CUDA_LANES")
    tight = Pool(EmulatedDevice(processors=4, shared_limit=9 << 10))
    assert tight.waves(small, 512, 16) == (1, 1) and tight.pair(small, 512, 16) == 1


@pytest.mark.parametrize("option", ["weight_drop", "layer_norm", "projection"])
def test_what_a_chunk_costs(option: str) -> None:
    """Masks of weights are made for every chunk, variants have more barriers."""

    def cycles(**options: Any) -> float:
        (layer,) = layers_of(256, depth=1, **options)
        cell = waves.Cell(**layer.sizes)  # type: ignore[arg-type]
        return waves._cycles(132, 227 << 10, "float32", cell, 10, 16)

    value: Any = {"weight_drop": 0.5, "layer_norm": True, "projection": 256}[option]
    assert cycles(**{option: value}) > cycles()


# ---- layers


CELLS: dict[str, tuple[Any, RecurrentOptions]] = {
    "lstm": (LSTM, RecurrentOptions()),
    "gru": (GRU, RecurrentOptions()),
    "rnn": (RNN, RecurrentOptions()),
    "reset-before": (GRU, RecurrentOptions(reset_before=True, zoneout=0.3)),
    "lstm-variants": (
        LSTM,
        RecurrentOptions(
            recurrent_dropout=0.3, weight_drop=0.3, zoneout=0.2, zoneout_cell=0.2, layer_norm=True,
            peephole=True, projection=5,
        ),
    ),
    "gru-variants": (
        GRU,
        RecurrentOptions(recurrent_dropout=0.3, weight_drop=0.3, zoneout=0.2, layer_norm=True),
    ),
    "rnn-variants": (RNN, RecurrentOptions(recurrent_dropout=0.3, weight_drop=0.3, zoneout=0.2)),
}  # fmt: skip
LENGTHS = {"full": None, "sorted": [6, 4, 3, 0], "unsorted": [3, 0, 6, 4]}
every_cell = pytest.mark.parametrize("cell", CELLS)


def parameters_of(specs: Any, pool: Pool) -> Parameters:
    made = Parameters(specs, np.float64, pool)
    rng = np.random.default_rng(0)
    for p in made.values():
        pool.load(p.data, 0.5 * rng.normal(size=p.data.shape))
    return made


def draw(pool: Pool, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(1)
    return [pool.bring(rng.normal(size=shape)) for shape in shapes]


def both_ways(cell: str, lengths: Any, pool: Pool, *, train: bool = True) -> list[Any]:
    """Results of a bidirectional layer, and its gradients."""
    kind, options = CELLS[cell]
    specs = [s for way in "ab" for s in kind.specs(way, I, H, options=options)]
    parameters = parameters_of(specs, pool)
    layer = Bidirectional(*(kind(parameters, way, options=options, index=i)
                            for i, way in enumerate("ab")))  # fmt: skip
    shapes = [s.shape for s in layer.initial_state(B)]
    x, dy, *states = draw(pool, (T, B, I), (T, B, layer.output_size), *shapes, *shapes)
    state, dstate = states[: len(shapes)], states[len(shapes) :]
    (y, last), backprop = layer(x, state, Context(train, 3, 5, 7), lengths)
    found = [y, *last]
    del x, y, last
    if backprop is not None:
        dx = backprop(dy, dstate)
        found += [dx, *backprop.dstart, *(p.grad for p in parameters.values())]
    return [to_host(value) for value in found]


@every_cell
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_directions_run_side_by_side(
    cell: str, lengths: Any, device: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as on one stream with the same share of the card; the CPU's numbers."""
    monkeypatch.setattr(waves, "worth_two_lanes", lambda *_: True)
    timeline.used.clear()
    got = both_ways(cell, lengths, Pool(device))
    assert {"lane 0", "lane 1"} <= timeline.used
    want = both_ways(cell, lengths, Pool())
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, CLOSED_FORM, what=str(i))
    monkeypatch.setattr(waves, "worth_two_lanes", lambda *_: False)
    timeline.used.clear()
    with emulation(StrictDevice(processors=3)) as half:
        alone = both_ways(cell, lengths, Pool(half))
    assert timeline.used == {races.MAIN}
    for i, (a, b) in enumerate(zip(got, alone, strict=True)):
        assert_same_bits(a, b, what=str(i))


def stacked(
    cell: str, lengths: Any, pool: Pool, *, depth: int = 3, train: bool = True
) -> list[Any]:
    """Results of layers one upon another, and their gradients."""
    kind, options = CELLS[cell]
    sizes = [I, *[options.projection or H] * depth]
    specs = [s for i in range(depth) for s in kind.specs(f"{i}", sizes[i], H, options=options)]
    parameters = parameters_of(specs, pool)
    layers = [kind(parameters, f"{i}", options=options, index=i) for i in range(depth)]
    dropouts = [
        Dropout(p, site=3, layer=i, locked=i == 1, pool=pool)
        for i, p in enumerate([0.3, 0.2, 0.0][:depth])
    ]
    made = Stack(layers, dropouts, [i > 1 for i in range(depth)], pool)
    shapes = [s.shape for layer in layers for s in layer.initial_state(B)]
    x, dy, *states = draw(pool, (T, B, I), (T, B, sizes[-1]), *shapes)
    n = layers[0].states
    entries = [tuple(states[n * i : n * i + n]) for i in range(depth)]
    order = None
    if lengths is not None:
        order = RowOrder(np.array(lengths, np.int32))
        lengths = order.lengths
    below, above = [x], [dy]
    del x, dy
    (y, last), backprop = made(below, entries, Context(train, 3, 5, 7), lengths, order)
    found = [y, *(s for entry in last for s in entry)]
    del y, last, entries, states
    if backprop is not None:
        dx = backprop(above)
        found += [dx, *(p.grad for p in parameters.values())]
    return [to_host(value) for value in found]


@every_cell
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("lanes", [2, 3])
def test_layers_run_a_chunk_behind_each_other(
    cell: str, lengths: Any, lanes: int, device: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results, gradients and masks of whole layers; the same bits again."""
    monkeypatch.setattr(waves, "chunks_of", lambda *_: (lanes, 4))
    timeline.used.clear()
    got = stacked(cell, lengths, Pool(device))
    assert {f"lane {i}" for i in range(lanes)} <= timeline.used
    want = stacked(cell, lengths, Pool())
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, CLOSED_FORM, what=str(i))
    device.seed += 1000
    again = stacked(cell, lengths, Pool(device))
    for i, (a, b) in enumerate(zip(got, again, strict=True)):
        assert_same_bits(a, b, what=str(i))


@pytest.mark.parametrize("train", [True, False])
def test_scoring_runs_in_lanes(
    train: bool, device: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays behind."""
    monkeypatch.setattr(waves, "chunks_of", lambda *_: (2, 3))
    monkeypatch.setattr(waves, "worth_two_lanes", lambda *_: True)
    timeline.used.clear()
    for results in (both_ways, stacked):
        got = results("gru", [3, 0, 6, 4], Pool(device), train=train)
        want = results("gru", [3, 0, 6, 4], Pool(), train=train)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_close(a, b, CLOSED_FORM, what=str(i))
    assert "lane 1" in timeline.used


MISSING: dict[str, tuple[Any, str, Any, str]] = {
    "wait": (Lanes, "wait", Lanes.hold, "unordered"),
    "hold": (Lanes, "hold", lambda *_: None, "may get the memory"),
}


@pytest.mark.parametrize("missing", MISSING)
def test_what_the_stack_needs(
    missing: str, device: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waits, or without what is held, there are races."""
    monkeypatch.setattr(waves, "chunks_of", lambda *_: (2, 3))
    owner, name, instead, message = MISSING[missing]
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(Race, match=message):
        stacked("lstm", [3, 0, 6, 4], Pool(device))


def test_layers_of_one_parameter_take_turns(
    device: StrictDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both directions of one layer add to one gradient."""
    monkeypatch.setattr(waves, "worth_two_lanes", lambda *_: True)
    pool = Pool(device)
    layer = GRU(parameters_of(GRU.specs("a", I, H), pool), "a")
    both = Bidirectional(layer, layer)
    x, dy = draw(pool, (T, B, I), (T, B, 2 * H))
    timeline.used.clear()
    _, backprop = both(x, both.initial_state(B), Context(train=True))
    backprop(dy)
    assert timeline.used == {races.MAIN}


@pytest.mark.gpu
@pytest.mark.skipif(not has_card(), reason="no GPU")
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("results", [both_ways, stacked])
def test_lanes_on_a_card(
    results: Callable[..., list[Any]], cell: str, lengths: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's numbers, and the same bits every time."""
    monkeypatch.setattr(waves, "worth_two_lanes", lambda *_: True)
    monkeypatch.setattr(waves, "chunks_of", lambda *_: (3, 4))
    want, pool = results(cell, lengths, Pool()), pool_on("cuda")
    first = results(cell, lengths, pool)
    for i, (a, b) in enumerate(zip(first, want, strict=True)):
        assert_close(a, b, CLOSED_FORM, what=str(i))
    for _ in range(20):
        for i, (a, b) in enumerate(zip(first, results(cell, lengths, pool), strict=True)):
            assert_same_bits(b, a, what=str(i))
