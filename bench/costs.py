"""Measures what `pynlm.heads.choose_cutoffs` reckons with: `pynlm/heads/costs.json`.

`make costs`, on an otherwise idle machine, in seconds: the fused cross-entropy with gradients over
a grid of shapes, and a cluster's gathered projection; the least time of several calls each. Prices
of the terms that a call's cost is the sum of are fitted to that, by least squares of relative
errors, none of them below zero.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import pynlm
from bench import machine
from pynlm.heads.cutoffs import TERMS, terms
from pynlm.kernels import linear_backward, linear_forward, xent_gradients

PATH = Path(pynlm.__file__).parent / "heads" / "costs.json"
ROWS, WIDTHS, WORDS = (8, 32, 128, 512), (16, 64, 256, 1024), (512, 4096, 32768, 131072)
MOST, CALLS = 2e9, 7
Array = np.ndarray[Any, np.dtype[Any]]


def softmax(rows: int, width: int, words: int) -> Callable[[], None]:
    """Loss and gradients of `rows` hidden states over `words` words."""
    h, w = _array(rows, width), _array(words, width)
    nll, dh, dw = np.empty(rows, np.float32), np.empty_like(h), np.empty_like(w)
    targets = np.zeros(rows, np.int32)
    return lambda: xent_gradients(nll=nll, dh=dh, dw=dw, h=h, w=w, targets=targets)


def projection(rows: int, size: int, width: int) -> Callable[[], None]:
    """Rows gathered, projected to `width`, and the way back."""
    h, w = _array(2 * rows, size), _array(width, size)
    y, dw, places = np.empty((rows, width), np.float32), np.empty_like(w), np.arange(rows) * 2

    def run() -> None:
        x = h[places]
        linear_forward(y=y, x=x, w=w)
        dx = np.empty_like(x)
        linear_backward(dx=dx, dw=dw, dy=y, x=x, w=w)
        dx += h[places]
        h[places] = dx

    return run


def fit(make: Callable[..., Callable[[], None]], shapes: list[tuple[int, int, int]]) -> Any:
    """Prices of `TERMS`, and the median relative error that they leave."""
    seconds = np.array([_least(make(*shape)) for shape in shapes])
    relative = np.array([np.array(terms(*shape)) for shape in shapes]) / seconds[:, None]
    kept = np.arange(len(TERMS))
    while True:
        prices = np.linalg.lstsq(relative[:, kept], np.ones(len(shapes)), rcond=None)[0]
        if (prices >= 0).all():
            break
        kept = np.delete(kept, prices.argmin())
    errors = abs(relative[:, kept] @ prices - 1).tolist()
    found = dict.fromkeys(TERMS, 0.0)
    found |= {TERMS[i]: float(f"{price:.3g}") for i, price in zip(kept, prices, strict=True)}
    return {"prices": found, "median_error": round(median(errors), 3)}


def _least(run: Callable[[], None]) -> float:
    run()
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _array(*shape: int) -> Array:
    return np.random.default_rng(1).random(shape, np.float32) - np.float32(0.5)


def main() -> None:
    """Measure, and write the table."""
    shapes = [s for s in product(ROWS, WIDTHS, WORDS) if np.prod(s, dtype=float) <= MOST]
    narrow = list(product(ROWS, (256, 512, 1024), (16, 64, 256)))
    table = {
        "unit": "seconds",
        "threads": pynlm.get_num_threads(),
        "cpu": machine.cpu_model(),
        "softmax": fit(softmax, shapes),
        "projection": fit(projection, narrow),
    }
    PATH.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(PATH.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
