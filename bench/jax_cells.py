"""`pynlm.jax` beside a `lax.scan` of the same cell, under jit, and beside busy processes.

`python -m bench.jax_cells [--seconds S] [--out DIR]`. Forward and backward of a layer, whose
results are compared first; then a training step of a language model whose embedding, softmax and
update are XLA's own, so that XLA's threads and pynlm's take turns: alone, and with one and two
processes that keep CPUs busy. Writes DIR/jax_cells.json and DIR/jax_cells.md. Needs JAX; wants an
otherwise idle machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from bench import page
from bench.cases import GATES, Recurrent
from bench.inputs import SEED, Array, RecurrentInputs, recurrent_inputs
from bench.load import competitors, piece
from bench.measure import check_agreement, contenders
from bench.peers import JAX, with_jax
from bench.small_page import SmallPage, options
from bench.timing import Budget, Contest, Times, threads
from bench.work import Work
from pynlm import _kernels, kernels
from pynlm.jax import calls, gru, initial_weights, lstm, rnn

CASES = [
    *(Recurrent(cell, 50, 32, 256, 256) for cell in GATES),
    Recurrent("lstm", 50, 32, 128, 128),
    Recurrent("lstm", 35, 20, 650, 650),
    Recurrent("lstm", 1, 1, 16, 16),
    Recurrent("lstm", 100, 32, 256, 256, ragged=True),
]
MODEL = {"time": 35, "batch": 20, "size": 256, "vocabulary": 5000}
"""One LSTM between an embedding and a softmax."""
LOADS = (0, 1, 2)
GOAL = 1.5
"""Of the first case, against `lax.scan`."""

Row = dict[str, Any]
_CELLS: dict[str, Callable[..., Any]] = {"lstm": lstm, "gru": gru, "rnn": rnn}


def ways() -> list[str]:
    """How this build can call its kernels from XLA."""
    return ["ffi", "callback"] if _kernels.xla_handlers() else ["callback"]


def ours(case: Recurrent, inputs: RecurrentInputs, way: str) -> Work:
    """A layer by `pynlm.jax`."""
    calls.calls_by()  # which makes the kernels known to XLA
    weights = jax.tree.map(jnp.asarray, inputs.weights[0])
    x, dy = jnp.asarray(inputs.x), jnp.asarray(inputs.dy)
    lengths = None if inputs.lengths is None else jnp.asarray(inputs.lengths)

    @jax.jit
    def train(weights: Any, x: jax.Array, dy: jax.Array) -> Any:
        with patch.object(calls, "calls_by", return_value=way):
            cell = _CELLS[case.cell]
            y, backward = jax.vjp(lambda w, x: cell(w, x, lengths=lengths)[0], weights, x)
            return y, backward(dy)

    def run() -> Any:
        return jax.block_until_ready(train(weights, x, dy))

    def results() -> dict[str, Array]:
        y, (dweights, dx) = run()
        found = {"y": np.asarray(y), "dx": np.asarray(dx)}
        return found | {f"d{name}.0": np.asarray(d) for name, d in dweights.items()}

    return Work(run, results)


def measure(case: Recurrent, budget: Budget) -> list[Row]:
    """Times of all ways of one layer, with their ratios to `lax.scan` by round."""
    works = contenders(case, [with_jax])  # type: ignore[list-item]
    inputs = recurrent_inputs(case)
    works |= {f"pynlm.jax, {way}": ours(case, inputs, way) for way in ways()}
    check_agreement(case, works)
    seconds = Contest({name: work.run for name, work in works.items()}).run(budget)
    rows = []
    for name, own in seconds.items():
        faster = median(a / b for a, b in zip(seconds[JAX], own, strict=True))
        row = {"case": f"{case.cell.upper()} {case.name}{' ragged' * case.ragged}", "way": name}
        rows.append(row | {"seconds": Times.of(own).median, "faster": faster})
        print(row["case"], name, page.duration(Times.of(own).median), file=sys.stderr, flush=True)
    return rows


def model_steps() -> dict[str, Callable[[], object]]:
    """Training steps of the model, by the way of its LSTM, from the same weights."""
    calls.calls_by()  # which makes the kernels known to XLA
    time, batch, size, vocabulary = MODEL.values()
    rng = np.random.default_rng(SEED)
    ids = jnp.asarray(rng.integers(0, vocabulary, (time + 1, batch)), jnp.int32)
    table = jnp.asarray(rng.standard_normal((vocabulary, size)) * 0.1, jnp.float32)
    cell = initial_weights("lstm", jax.random.key(0), size, size)
    flat = {name: w.T if w.ndim == 2 else w for name, w in cell.items()}
    zeros = jnp.zeros((batch, size), jnp.float32)
    scan = partial(with_jax._layer, with_jax._STEPS["lstm"])

    def loss(layer: Callable[[Any, Any], Any], weights: Any) -> jax.Array:
        y = layer(weights[1], weights[0][ids[:-1]])
        log_prob = jax.nn.log_softmax(y.reshape(-1, size) @ weights[2].T)
        return -jnp.take_along_axis(log_prob, ids[1:].reshape(-1, 1), 1).mean()

    def step(way: str, layer: Callable[[Any, Any], Any], weights: Any) -> Callable[[], object]:
        @jax.jit
        def update(weights: Any) -> Any:
            with patch.object(calls, "calls_by", return_value=way):
                value, gradients = jax.value_and_grad(partial(loss, layer))(weights)
            return value, jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients)

        state = [weights]

        def run() -> float:
            value, state[0] = update(state[0])
            return float(jax.block_until_ready(value))

        return run

    found = {JAX: step("", lambda w, x: scan(w, x, (zeros, zeros), None), [table, flat, table])}
    for way in ways():
        found[f"pynlm.jax, {way}"] = step(way, lambda w, x: lstm(w, x)[0], [table, cell, table])
    first = {name: run() for name, run in found.items()}
    if not np.allclose(list(first.values()), first[JAX], rtol=1e-4):
        raise AssertionError(f"losses differ: {first}")
    return found


def measure_model(seconds: float, rounds: int = 3) -> list[Row]:
    """Medians of the model's steps beside each number of competitors."""
    steps = model_steps()
    found: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for load in LOADS:
            with competitors(load):
                for name, step in steps.items():
                    found.setdefault((load, name), []).extend(piece(step, seconds / rounds))
    rows: list[Row] = []
    for (load, name), own in found.items():
        alone = median(found[0, name])
        row = {"load": load, "way": name, "seconds": median(own), "slower": median(own) / alone}
        rows.append(row | {"faster": median(found[load, JAX]) / median(own)})
    return rows


def render(facts: Mapping[str, str], rows: list[Row], model: list[Row], n: int) -> str:
    """The page."""
    time, batch, size, vocabulary = MODEL.values()
    layers = [
        [row["case"], row["way"], page.duration(row["seconds"]), page.times(row["faster"])]
        for row in rows
    ]
    steps = [
        [
            str(row["load"]),
            row["way"],
            page.duration(row["seconds"]),
            page.times(row["slower"]) if row["load"] else "",
            page.times(row["faster"]),
        ]
        for row in model
    ]
    parts = [
        f"Forward and backward of a layer under jit with {page.threads(n)} in XLA and in pynlm: "
        "T,B,I,H. JAX is a `lax.scan` after one product of the input; pynlm alone is the kernels "
        "without JAX; the ratio is to JAX's time, a median over rounds in turns. The goal of the "
        f"first case is {GOAL}.",
        page.table(["layer", "way", "time", "× JAX's speed"], layers),
        f"A training step of a language model (embedding, LSTM, softmax over {vocabulary} words, "
        f"width {size}, T {time}, B {batch}; all but the LSTM is XLA's), beside processes that do "
        "nothing but compute.",
        page.table(["busy processes", "way", "step", "slower than alone", "× JAX's speed"], steps),
    ]
    return page.small("Cells for JAX", facts, parts, "jax_cells")


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    given = options("jax_cells", __doc__, 4.0, "case and load").parse_args(arguments)
    report, budget = SmallPage("jax_cells", [with_jax]), Budget(given.seconds)  # type: ignore[list-item]
    with threads(kernels.get_num_threads(), [with_jax]):  # type: ignore[list-item]
        rows = [row for case in CASES for row in measure(case, budget)]
        model = measure_model(given.seconds)
    values = {"layers": rows, "model": model}
    report.write(given.out, values, lambda facts, n: render(facts, rows, model, n))


if __name__ == "__main__":
    main()
