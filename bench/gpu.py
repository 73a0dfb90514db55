"""CUDA kernels beside cuDNN, through the torch found on a machine with a GPU.

`python -m bench.gpu [--seconds S] [--out DIR]`. A forward and a backward pass of one layer on
arrays that are on the card, at each precision; torch's results in double precision are what both
are checked against first. Training steps of whole models are timed with their kernels queued one by
one and as a CUDA graph. The limits are measured in the same run: a large product through cuBLAS
at each precision, a large copy. Writes DIR/gpu.json and DIR/gpu.md.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from bench import page
from bench.cases import Softmax
from bench.small_page import SmallPage, options
from pynlm.layers import LSTM, Bidirectional, Context, Dropout, Parameters, Pool
from pynlm.layers.stack import Stack
from pynlm.testing import assert_close
from pynlm.testing.tolerances import Tolerance, kernel_tolerance, narrow_tolerance

Row = dict[str, Any]
Call = Callable[[], object]
PRECISIONS = ("float32", "tf32", "bf16")
CELLS = ("lstm", "gru")
GATES = {"lstm": 4, "gru": 3}


class Shape(NamedTuple):
    """Steps, batch, input, hidden."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


SHAPES = [
    Shape(35, 20, 200, 200),
    Shape(35, 20, 650, 650),
    Shape(35, 20, 1500, 1500),
    Shape(70, 20, 400, 1150),
    Shape(50, 64, 512, 512),
    Shape(128, 32, 256, 256),
    Shape(512, 16, 1024, 1024),
    Shape(100, 128, 1024, 1024),
]
LANES = [Shape(128, 20, 200, 200), Shape(512, 16, 256, 256), Shape(512, 16, 1024, 1024)]
KINDS = ("bidirectional", "two layers")
FORCED = (2, 8)  # lanes, chunks of time
SOFTMAXES = [
    Softmax(700, 650, 10_000),
    Softmax(700, 650, 33_000),
    Softmax(1024, 256, 81_000),
    Softmax(1024, 512, 267_000),
]

RECIPES = ("zaremba-small", "zaremba-medium", "zaremba-large")
WORDS = 10_000


class Contest:
    """Calls that take turns on the device, timed by its events."""

    def __init__(self, cupy: Any, seconds: float) -> None:
        self.cupy, self.seconds = cupy, seconds

    def run(self, calls: dict[str, Call]) -> dict[str, float]:
        """Median seconds of each."""
        once = {}
        for name, call in calls.items():
            call()
            once[name] = self._clock(call)
        rounds = min(max(int(self.seconds / sum(once.values())), 7), 200)
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(self._clock(call))
        return {name: statistics.median(times) for name, times in found.items()}

    def _clock(self, call: Call) -> float:
        events = [self.cupy.cuda.Event() for _ in range(2)]
        events[0].record()
        call()
        events[1].record()
        events[1].synchronize()
        return float(self.cupy.cuda.get_elapsed_time(*events)) / 1e3


def limits(cupy: Any, contest: Contest) -> dict[str, float]:
    """FLOP/s of a large product at each precision, bytes/s of a large copy (read and written)."""
    from pynlm.cuda.device import current

    n, device = 8192, current()
    a, b = (cupy.random.standard_normal((n, n), dtype=cupy.float32) for _ in range(2))
    out, found = cupy.empty((n, n), cupy.float32), {}
    for precision in PRECISIONS:
        device.math = precision
        seconds = contest.run({"product": partial(device.matmul, out, a, b)})["product"]
        found[precision] = 2.0 * n**3 / seconds
    large = cupy.random.standard_normal(2**29, dtype=cupy.float32)
    copy = cupy.empty_like(large)
    seconds = contest.run({"copy": partial(cupy.copyto, copy, large)})["copy"]
    return {**found, "copy": 2.0 * large.nbytes / seconds}


def recurrent(cell: str, shape: Shape, precision: str, contest: Contest, cupy: Any) -> Row:
    """Seconds of both passes, ours and cuDNN's."""
    import torch

    from pynlm import cuda
    from pynlm.cuda.device import current

    T, B, I, H = shape
    G, lstm = GATES[cell], cell == "lstm"
    current().math = precision
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.manual_seed(1)
    exact = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](I, H).cuda().double()
    x = torch.randn(T, B, I, device="cuda", dtype=torch.float64)
    dy = torch.randn(T, B, H, device="cuda", dtype=torch.float64)

    def in_torch(module: Any, dtype: Any) -> tuple[Call, Callable[[], dict[str, Any]]]:
        inputs, upstream = x.to(dtype).requires_grad_(), dy.to(dtype)

        def run() -> Any:
            module.zero_grad(set_to_none=True)
            inputs.grad = None
            y, _ = module(inputs)
            y.backward(upstream)
            return y

        def results() -> dict[str, Any]:
            y = run()
            of = {"dw_ih": module.weight_ih_l0.grad, "dw_hh": module.weight_hh_l0.grad}
            found = {"y": y.detach(), "dx": inputs.grad, "db": module.bias_ih_l0.grad, **of}
            return {name: value.double().cpu().numpy() for name, value in found.items()}

        return run, results

    narrow = torch.bfloat16 if precision == "bf16" else torch.float32
    theirs = type(exact)(I, H).cuda()
    theirs.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
    theirs = theirs.to(narrow)
    theirs.flatten_parameters()
    run_torch, torch_results = in_torch(theirs, narrow)
    want = in_torch(exact, torch.float64)[1]()

    def ours(value: Any) -> Any:
        return cupy.asarray(value.detach().float().contiguous())

    def empty(*sizes: int) -> Any:
        return cupy.full(sizes, cupy.nan, cupy.float32)

    weights = {"w_ih": ours(exact.weight_ih_l0), "w_hh": ours(exact.weight_hh_l0)}
    biases = exact.bias_ih_l0, exact.bias_hh_l0
    given = {"x": ours(x), "h0": cupy.zeros((B, H), cupy.float32), **weights}
    saved = {"gates": empty(T, B, G * H), "y": empty(T, B, H)}
    out = {"h_last": empty(B, H)}
    gradients = {"dx": empty(T, B, I), "dh0": empty(B, H), "db": empty(G * H)}
    gradients |= {"dw_ih": empty(G * H, I), "dw_hh": empty(G * H, H)}
    if lstm:
        given |= {"c0": cupy.zeros((B, H), cupy.float32)}
        saved |= {"c": empty(T, B, H)}
        out |= {"c_last": empty(B, H)}
        gradients |= {"dc0": empty(B, H)}
        own = {"b": ours(biases[0] + biases[1])}
    else:
        saved |= {"hn": empty(T, B, H)}
        gradients |= {"db_hn": empty(H)}
        first = biases[0].clone()
        first[: 2 * H] += biases[1][: 2 * H]
        own = {"b": ours(first), "b_hn": ours(biases[1][2 * H :])}
    forward = partial(getattr(cuda, f"{cell}_forward"), **saved, **out, **given, **own)
    backward = partial(
        getattr(cuda, f"{cell}_backward"), **gradients, **saved, **given, dy=ours(dy)
    )

    def run_ours() -> None:
        forward()
        backward()

    run_ours()
    found = {"y": saved["y"], **{k: gradients[k] for k in ("dx", "db", "dw_ih", "dw_hh")}}
    errors = {"pynlm": {}, "torch": {}}
    for name, value in torch_results().items():
        errors["torch"][name] = relative_error(value, want[name])
    for name, value in found.items():
        got = cupy.asnumpy(value).astype("float64")
        errors["pynlm"][name] = relative_error(got, want[name])
        terms = T * (I + H) if precision == "float32" else I + H
        assert_close(got, want[name], tolerance(cell, precision), what=name, terms=terms)
    seconds = contest.run({"pynlm": run_ours, "forward": forward, "torch": run_torch})
    flops = 6.0 * G * H * (I + H) * B * T
    row = {"cell": cell, "case": str(shape), "precision": precision, "seconds": seconds}
    return {**row, "flops": flops, "steps": T, "errors": errors}


def softmax(case: Softmax, precision: str, contest: Contest, cupy: Any) -> Row:
    """Seconds of losses and all gradients, ours and those of torch's linear and cross_entropy."""
    import torch
    from torch.nn import functional as F

    from pynlm import cuda
    from pynlm.cuda.device import current

    N, H, V = case.N, case.H, case.V
    current().math = precision
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.manual_seed(1)
    h64 = torch.randn(N, H, device="cuda", dtype=torch.float64) * 0.5
    w64 = torch.randn(V, H, device="cuda", dtype=torch.float64) * 0.05
    b64, targets = torch.zeros(V, device="cuda").double(), torch.randint(V, (N,), device="cuda")

    def in_torch(dtype: Any) -> tuple[Call, Callable[[], dict[str, Any]]]:
        h, w, b = (t.to(dtype).requires_grad_() for t in (h64, w64, b64))

        def run() -> Any:
            h.grad = w.grad = b.grad = None
            loss = F.cross_entropy(F.linear(h, w, b).float() if dtype != torch.float64
                                   else F.linear(h, w, b), targets, reduction="sum")  # fmt: skip
            loss.backward()
            return loss

        def results() -> dict[str, Any]:
            run()
            found = {"dh": h.grad, "dw": w.grad, "db": b.grad}
            return {name: value.double().cpu().numpy() for name, value in found.items()}

        return run, results

    run_torch, _ = in_torch(torch.bfloat16 if precision == "bf16" else torch.float32)
    want = in_torch(torch.float64)[1]()
    h, w, b = (cupy.asarray(t.float()) for t in (h64, w64, b64))
    out = {"nll": cupy.empty(N, cupy.float32), "dh": cupy.empty_like(h)}
    out |= {"dw": cupy.empty_like(w), "db": cupy.empty_like(b)}
    ids = cupy.asarray(targets.int())
    run_ours = partial(cuda.xent_gradients, **out, h=h, w=w, b=b, targets=ids)
    run_ours()
    for name, value in want.items():
        got = cupy.asnumpy(out[name]).astype("float64")
        terms = max(N, V) + H if precision == "float32" else H
        assert_close(got, value, tolerance("xent", precision), what=name, terms=terms)
    seconds = contest.run({"pynlm": run_ours, "torch": run_torch})
    row = {"case": case.name, "precision": precision, "seconds": seconds}
    return {**row, "flops": 6.0 * N * H * V}


class Fixed(Pool):
    """A pool that does not count what is fastest."""

    def __init__(self, device: Any, answer: tuple[int, int]) -> None:
        super().__init__(device)
        self.answer = answer

    def waves(self, layers: Any, time: int, batch: int) -> tuple[int, int]:
        return self.answer

    def pair(self, layers: Any, time: int, batch: int) -> int:
        return self.answer[0]


def side_by_side(kind: str, shape: Shape, precision: str, contest: Contest, cupy: Any) -> Row:
    """Seconds of both passes of two LSTMs: one after another, in lanes, and as counted."""
    from pynlm.cuda.device import current

    (T, B, I, H), device = shape, current()
    device.math = precision
    x = cupy.random.standard_normal((T, B, I), dtype=cupy.float32)
    calls: dict[str, Call] = {}
    found: dict[str, Any] = {}
    pools = {
        "alone": Fixed(device, (1, 1)),
        "lanes": Fixed(device, FORCED),
        "counted": Pool(device),
    }
    for name, pool in pools.items():
        wide = kind == "bidirectional"
        specs = LSTM.specs("0", I, H) + LSTM.specs("1", I if wide else H, H)
        parameters = Parameters(specs, "float32", pool)
        rng = cupy.random.RandomState(1)
        parameters.data[:] = rng.uniform(-0.05, 0.05, parameters.data.shape)
        layers = [LSTM(parameters, str(i), index=i) for i in range(2)]
        none = [Dropout(0.0, site=i, pool=pool) for i in range(2)]
        both = Bidirectional(*layers) if wide else Stack(layers, none, [False, False], pool)
        zeros = tuple(layer.initial_state(B) for layer in layers)
        states = zeros[0] + zeros[1] if wide else zeros

        def run(
            both: Any = both, parameters: Any = parameters, states: Any = states, wide: bool = wide
        ) -> Any:
            parameters.zero_grad()
            (y, _), backprop = both(x if wide else [x], states, Context(train=True))
            return backprop(y if wide else [y])

        calls[name] = run
        found[name] = cupy.asnumpy(run())
    for name, dx in found.items():
        bound = tolerance("lstm", precision)
        assert_close(dx, found["alone"], bound, what=f"{kind} {name}", terms=T * (I + H))
    counted = pools["counted"]
    choice = (counted.pair(layers, T, B), 1) if wide else counted.waves(layers, T, B)
    row = {"kind": kind, "case": str(shape), "precision": precision, "choice": list(choice)}
    return {**row, "seconds": contest.run(calls)}


def training(name: str, precision: str, contest: Contest) -> Row:
    """Seconds of a recipe's step, its kernels queued one by one and as a CUDA graph."""
    import numpy as np

    from pynlm.models import RecurrentLM
    from pynlm.text import Batch
    from pynlm.train.bptt import BPTT
    from pynlm.train.config import load_recipe
    from pynlm.train.graphs import EAGER
    from pynlm.train.optimisers import make_optimiser
    from pynlm.train.settings import model_config

    recipe = load_recipe(name)
    shape = recipe.train.bptt, recipe.train.batch_size
    ids, targets = np.random.default_rng(1).integers(WORDS, size=(2, *shape)).astype(np.int32)
    batch, calls, count = Batch(ids, targets, None, fresh=False), {}, itertools.count(1)
    for kind in ("queued", "graph"):
        model = RecurrentLM(model_config(recipe, WORDS), device="cuda")
        model.initialise(1)
        config = recipe.train.model_copy(update={"graph": kind == "graph"})
        steps = BPTT(model, make_optimiser(recipe.optimiser, model.parameters), config)

        def step(steps: BPTT = steps, math: str = precision) -> None:
            with steps.model.pool.computing_in(math):
                steps.step(batch, lr=1e-3, step=next(count))

        for _ in range(EAGER + 2):
            step()
        if kind == "graph" and (steps._graphs is None or not steps._graphs.made):
            raise RuntimeError(f"{name}, {precision}: no CUDA graph was made of the step")
        calls[kind] = step
    seconds = contest.run(calls)
    return {"case": name, "precision": precision, "seconds": seconds, "tokens": ids.size}


def tolerance(kernel: str, precision: str) -> Tolerance:
    """Of a kernel's results at a precision. Narrow operands count once a step, not once a sum."""
    if precision == "float32":
        return kernel_tolerance(kernel, precision)
    return narrow_tolerance(precision)


def relative_error(got: Any, want: Any) -> float:
    """||got - want|| / ||want||."""
    return float((((got - want) ** 2).sum() / (want**2).sum()) ** 0.5)


def render(
    facts: dict[str, str],
    most: dict[str, float],
    cells: list[Row],
    heads: list[Row],
    pairs: list[Row],
    steps: list[Row],
) -> str:
    """The page."""
    rates = ", ".join(f"{most[p] / 1e12:.0f} TFLOP/s in {p}" for p in PRECISIONS)
    parts = [
        "Forward and backward pass on the card, beside cuDNN's through torch; a ratio is how many "
        f"times as long torch takes. Measured limits: {rates} (products of 8192 x 8192 matrices), "
        f"{most['copy'] / 1e12:.2f} TB/s (a copy, read and written)."
    ]
    for cell in CELLS:
        table = [
            [
                row["case"],
                row["precision"],
                f"{1e3 * row['seconds']['pynlm']:.2f} ms",
                f"{1e6 * row['seconds']['pynlm'] / row['steps']:.1f}",
                f"{1e6 * row['seconds']['forward'] / row['steps']:.1f}",
                f"{100 * row['flops'] / row['seconds']['pynlm'] / most[row['precision']]:.0f} %",
                f"{row['errors']['pynlm']['dw_hh']:.1e}",
                f"{row['errors']['torch']['dw_hh']:.1e}",
                page.times(row["seconds"]["torch"] / row["seconds"]["pynlm"]),
            ]
            for row in cells
            if row["cell"] == cell
        ]
        head = ["T,B,I,H", "precision", "pynlm", "us a step", "forward, us a step", "of the peak"]
        head += ["error of dw_hh", "torch's", "over torch"]
        ratios = [
            row["seconds"]["torch"] / row["seconds"]["pynlm"]
            for row in cells
            if row["cell"] == cell
        ]
        mean = statistics.geometric_mean(ratios)
        parts += [
            f"## {cell.upper()}\n\nGeometric mean {page.times(mean)}, least "
            f"{page.times(min(ratios))} (goal: 1.2x, none under 0.9x).",
            page.table(head, table),
        ]
    table = [
        [
            row["case"],
            row["precision"],
            f"{1e3 * row['seconds']['pynlm']:.2f} ms",
            f"{100 * row['flops'] / row['seconds']['pynlm'] / most[row['precision']]:.0f} %",
            page.times(row["seconds"]["torch"] / row["seconds"]["pynlm"]),
        ]
        for row in heads
    ]
    head = ["N,H,V", "precision", "pynlm", "of the peak", "over torch"]
    parts += ["## Exact softmax", page.table(head, table)]
    table = [
        [
            row["kind"],
            row["case"],
            row["precision"],
            *(f"{1e3 * row['seconds'][name]:.2f} ms" for name in ("alone", "lanes", "counted")),
            "{} lanes, {} chunks".format(*row["choice"]),
            page.times(row["seconds"]["alone"] / row["seconds"]["counted"]),
        ]
        for row in pairs
    ]
    head = ["LSTMs", "T,B,I,H", "precision", "one after another"]
    head += ["in {} lanes, {} chunks".format(*FORCED), "as counted", "which are", "over the first"]
    parts += ["## Side by side", page.table(head, table)]
    table = [
        [
            row["case"],
            row["precision"],
            f"{1e3 * row['seconds']['queued']:.2f} ms",
            f"{1e3 * row['seconds']['graph']:.2f} ms",
            page.times(row["seconds"]["queued"] / row["seconds"]["graph"]),
            f"{row['tokens'] / row['seconds']['graph']:,.0f}",
        ]
        for row in steps
    ]
    head = ["recipe", "precision", "queued", "as a graph", "faster", "tokens/s"]
    parts += [f"## Training steps, {WORDS:,} words", page.table(head, table)]
    return page.small("On a GPU", facts, parts, "gpu")


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    given = options("gpu", __doc__, 0.5, "case").parse_args(arguments)
    import torch

    from pynlm.cuda.device import import_cupy

    cupy = import_cupy()
    report = SmallPage("gpu")
    number = cupy.cuda.runtime.getDevice()
    report.facts |= {
        "GPU": cupy.cuda.runtime.getDeviceProperties(number)["name"].decode(),
        "CuPy": cupy.__version__,
        "torch": f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
    }
    contest = Contest(cupy, given.seconds)
    # First: that two cooperative grids on two streams overlap is promised nowhere.
    pairs = [
        side_by_side(kind, shape, precision, contest, cupy)
        for kind in KINDS
        for shape in LANES
        for precision in PRECISIONS
    ]
    most = limits(cupy, contest)
    cells = [
        recurrent(cell, shape, precision, contest, cupy)
        for cell in CELLS
        for shape in SHAPES
        for precision in PRECISIONS
    ]
    heads = [
        softmax(case, precision, contest, cupy) for case in SOFTMAXES for precision in PRECISIONS
    ]
    steps = [training(name, precision, contest) for name in RECIPES for precision in PRECISIONS]
    report.write(
        given.out,
        {
            "limits": most,
            "recurrent": cells,
            "softmax": heads,
            "lanes": pairs,
            "training": steps,
        },
        lambda facts, _: render(facts, most, cells, heads, pairs, steps),
    )


if __name__ == "__main__":
    main()
