"""Recurrent layers one upon another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.layers.backprop import Once
from pynlm.layers.context import Context
from pynlm.layers.convert import IntArray, RowOrder
from pynlm.layers.dropout import Dropout
from pynlm.layers.pool import Pool
from pynlm.layers.recurrent import Recurrent, State

Array = npt.NDArray[Any]


class Stack:
    """Recurrent layers one upon another, dropout after each, residual connections.

    `(y, states), backprop = stack([x], states, ctx, lengths, order)`, with `dx = backprop([dy])`.
    Lists hand arrays over: no name of the caller's keeps one until all layers are done. On a
    GPU, where that is faster, time is cut into chunks, and each layer runs a chunk behind the one
    below it, in a lane of its own: layer l needs its own state after chunk c - 1, and chunk c of
    the layer below. Results are those of whole layers, but for the order of sums over time; masks
    are the same.

    Parameters
    ----------
    layers
        From the lowest to the highest.
    dropouts
        What follows each of them.
    residual
        Whether each adds its input to its output.
    pool
        Of all of them.

    Examples
    --------
    >>> from pynlm.layers import LSTM, Parameters
    >>> specs = LSTM.specs("0", 3, 5) + LSTM.specs("1", 5, 4)
    >>> parameters = Parameters(specs)
    >>> layers = [LSTM(parameters, str(i), index=i) for i in range(2)]
    >>> dropouts = [Dropout(0.5, site=3, layer=i) for i in range(2)]
    >>> stack = Stack(layers, dropouts, [False, False], parameters.pool)
    >>> x, states = np.ones((7, 2, 3), np.float32), [layer.initial_state(2) for layer in layers]
    >>> (y, states), backprop = stack([x], states, Context(train=True))
    >>> y.shape, backprop([y]).shape
    ((7, 2, 4), (7, 2, 3))
    """

    def __init__(
        self,
        layers: Sequence[Recurrent],
        dropouts: Sequence[Dropout],
        residual: Sequence[bool],
        pool: Pool,
    ) -> None:
        self.layers, self.dropouts, self.residual = layers, dropouts, residual
        self.pool = pool

    def __call__(
        self,
        given: list[Array],
        states: Sequence[Sequence[Array]],
        ctx: Context,
        lengths: IntArray | None = None,
        order: RowOrder | None = None,
    ) -> tuple[tuple[Array, list[State]], StackBackprop | None]:
        """Run all layers.

        Parameters
        ----------
        given
            x [T, B, I], which is taken out; in training kept, and not to be changed, until
            backprop.
        states
            One a layer.
        lengths
            int32 [B], non-increasing; None means T for every row.
        order
            Given if the rows are sorted: random choices are those of the original rows.

        Returns
        -------
        (y, states), backprop
            y [T, B, H of the last layer]; new states in the order of `states`;
            `dx = backprop([dy])`, None unless `ctx.train`.
        """
        x = given.pop()
        time, batch, _ = x.shape
        count, chunks = self.pool.waves(self.layers, time, batch)
        spans = _spans(time, chunks)
        rows = None if order is None else order.rows
        whole: Array | None = None
        if chunks > 1:
            whole = self.pool.lease((time, batch, self.layers[-1].output_size), x.dtype)
        ends: list[Any] = list(states)
        backprops: list[list[Any]] = [[] for _ in self.layers]
        passed: list[Array] = []
        below: list[tuple[Any, Array]] = [(None, x if whole is None else x[s]) for s in spans]
        del x
        with self.pool.lanes(count) as lanes:
            for i, c in _wave(len(self.layers), chunks):
                event, x = below[c]
                with lanes[i]:
                    if i:
                        lanes.wait(event, x)
                        if whole is not None and ctx.train:
                            passed.append(x)
                    start = spans[c].start
                    here = replace(ctx, time0=ctx.time0 + start) if start else ctx
                    within = lengths
                    if lengths is not None and whole is not None:
                        within = np.clip(lengths - start, 0, spans[c].stop - start)
                    (y, ends[i]), backprop = self.layers[i](x, ends[i], here, within, rows)
                    y, drop = self.dropouts[i](y, here, inplace=not ctx.train, order=order)
                    backprops[i].append((backprop, drop))
                    if self.residual[i]:
                        # Neither may be overwritten in training: the layers need their outputs.
                        y = np.add(y, x, out=self.pool.like(y))
                    if whole is not None and i == len(self.layers) - 1:
                        whole[spans[c]] = y
                    below[c] = lanes.mark() if i < len(self.layers) - 1 else None, y
                    del x, y
        y = below[0][1] if whole is None else whole
        if not ctx.train:
            return (y, ends), None
        return (y, ends), StackBackprop("Stack", self, backprops, spans, count, passed)


class StackBackprop(Once):
    """`dx = backprop([dy])`: adds into all layers' gradients; may be called once.

    `dy` [T, B, H of the last layer] is taken out of the list and overwritten.
    """

    __slots__ = ()

    def __call__(self, given: list[Array]) -> Array:
        """Gradient [T, B, I] of the input."""
        stack: Stack
        stack, backprops, spans, count, passed = self._take()
        dy = given.pop()
        whole: Array | None = None
        if len(spans) > 1:
            shape = (*dy.shape[:2], stack.layers[0].input_size)
            whole = stack.pool.lease(shape, dy.dtype)
        starts: list[State | None] = [None] * len(backprops)
        above: list[tuple[Any, Array]] = [(None, dy if whole is None else dy[s]) for s in spans]
        del dy
        with stack.pool.lanes(count) as lanes:
            lanes.hold(*passed)
            for i, c in reversed(list(_wave(len(backprops), len(spans)))):
                event, dy = above[c]
                with lanes[i]:
                    if i < len(backprops) - 1:
                        lanes.wait(event, dy)
                    # Taken out, so that buffers are free as soon as may be.
                    backprop, drop = backprops[i].pop()
                    past = dy if stack.residual[i] else None
                    dx = backprop(drop(dy, inplace=past is None), starts[i])
                    starts[i] = backprop.dstart
                    if past is not None:
                        dx = np.add(dx, past, out=dx)
                    if whole is not None and i == 0:
                        whole[spans[c]] = dx
                    above[c] = lanes.mark() if i else None, dx
                    del dy, past, backprop, drop, dx
        return above[0][1] if whole is None else whole


def _spans(time: int, chunks: int) -> list[slice]:
    """Time in chunks of lengths that differ by at most one."""
    bounds = [time * c // chunks for c in range(chunks + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _wave(depth: int, chunks: int) -> Iterator[tuple[int, int]]:
    """(layer, chunk): what can run at once stands together, each after what it needs."""
    for front in range(depth + chunks - 1):
        for i in range(max(0, front - chunks + 1), min(depth, front + 1)):
            yield i, front - i
