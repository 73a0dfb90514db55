"""What stands for CUDA graphs without a card: as strict as they are, and as careless."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pynlm.cuda.graphs import CaptureError, Graph, Recorder
from pynlm.testing.emulated import StrictDevice, emulation

Array = Any


@pytest.fixture
def device() -> Iterator[StrictDevice]:
    with emulation(StrictDevice()) as found:
        assert isinstance(found, StrictDevice)
        yield found


def recorded(device: StrictDevice, work: Callable[[], None]) -> Graph:
    """The graph of work that was rehearsed."""
    recorder: Recorder = device.recorder()
    recorder.rehearse(work)
    return recorder.record(work)


def array(device: StrictDevice, values: Any) -> Array:
    return device.xp.asarray(np.array(values, np.float64))


def test_work_is_done_when_the_graph_runs(device: StrictDevice) -> None:
    """Operations, products and kernels, in their order, on what then stands at the addresses."""
    x, y = array(device, [[1, 2], [3, 4]]), device.zeros((2, 2), np.float64)

    def work() -> None:
        doubled = x + x
        product = device.empty((2, 2), np.float64)
        device.matmul(product, doubled, x.T)
        product[0] *= 2.0
        device.launch("optim/clip.cu", "clip_values", 1, real=x.dtype, x=product, n=4, limit=50.0)
        y[...] = np.add(product, y, out=product)

    graph = recorded(device, work)
    np.testing.assert_array_equal(y.get(), [[20, 44], [22, 50]])
    graph.launch()
    np.testing.assert_array_equal(y.get(), [[40, 88], [44, 100]])
    x[...] = array(device, [[1, 0], [0, 1]])
    y.fill(0)
    graph.launch()
    np.testing.assert_array_equal(y.get(), [[4, 0], [0, 2]])


def test_numbers_stay_those_of_the_recording(device: StrictDevice) -> None:
    x, factor = array(device, [1.0]), 3.0
    recorder = device.recorder()

    def work() -> None:
        x[...] = x * factor

    recorder.rehearse(work)
    factor = 5.0
    graph = recorder.record(work)
    factor = 7.0
    graph.launch()
    assert x.get() == [15.0]


def test_memory_is_handed_out_again(device: StrictDevice) -> None:
    """What is not held any more has rubbish when the graph begins, and becomes another array."""
    out = device.zeros((2, 3), np.float64)
    x = array(device, [1, 2, 3])
    kept: list[Array] = []

    def work() -> None:
        first = x + 1.0
        view = first[:]
        del first
        second = x + 2.0  # not where the view is
        out[0], out[1] = view, second
        del view
        kept.append(x + 3.0)

    recorder = device.recorder()
    recorder.rehearse(work)
    kept.clear()
    graph = recorder.record(work)
    graph.launch()
    np.testing.assert_array_equal(out.get(), [[2, 3, 4], [3, 4, 5]])
    np.testing.assert_array_equal(kept[0].get(), [4, 5, 6])
    later = recorder.record(lambda: out.__setitem__(0, x + 5.0))
    later.launch()  # its array is one that the first graph has let go of
    np.testing.assert_array_equal(kept[0].get(), [4, 5, 6])


@pytest.mark.parametrize(
    ("forbidden", "message"),
    [
        (lambda d, x: x.get(), "a wait for the device"),
        (lambda d, x: float(x[0]), "a wait for the device"),
        (lambda d, x: bool(x[0] > 0), "a wait for the device"),
        (lambda d, x: x[x > 0], "an index whose size must be known"),
        (lambda d, x: d.xp.unique(x), "unique"),
        (lambda d, x: d.bring(np.ones(3)), "a copy from the host"),
        (lambda d, x: x.set(np.ones(3)), "a copy from the host"),
        (lambda d, x: d.xp.concatenate([x, x]), "concatenate"),
        (lambda d, x: d.empty((1000,), np.float64), "memory of 8000 bytes that the rehearsal"),
    ],
)
def test_what_cannot_be_part_of_a_graph(
    device: StrictDevice, forbidden: Callable[..., Any], message: str
) -> None:
    x = array(device, [1, 2, 3])
    recorder = device.recorder()
    recorder.rehearse(lambda: None)
    recorder.rehearse(lambda: ((x + x) > 0, x[0] > 0))
    with pytest.raises(CaptureError, match=message):
        recorder.record(lambda: forbidden(device, x))
    forbidden(device, x)


def test_an_array_that_is_gone(device: StrictDevice) -> None:
    held, y = [array(device, [1.0])], array(device, [2.0])

    def work() -> None:
        y[...] = held[0]

    graph = recorded(device, work)
    held.clear()
    with pytest.raises(CaptureError, match=r"the graph uses an array \[1\] that is gone"):
        graph.launch()
