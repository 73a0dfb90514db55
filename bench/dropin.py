"""pynlm.torch beside torch.nn: `python -m bench.dropin [--seconds S] [--out DIR]`.

A single call on the smallest input, where all that counts is what surrounds the kernel; a language
model of words as torch's users write it, before and after `pynlm.torch.replace(model)`; and training
steps of a layer after products of torch's, whose threads still spin then. The two take turns in one
process. Writes DIR/dropin.json and DIR/dropin.md. Wants an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import pynlm.torch
from bench import page
from bench.inputs import SEED
from bench.small_page import SmallPage, options
from bench.timing import Budget, Contest, Times

HOMES: dict[str, Any] = {"torch": torch.nn, "pynlm": pynlm.torch}
TINY_WIDTH, TINY_CALLS = 16, 50
# torch's time over ours, by group and module.
STEP, BOTH, FORWARD = "training step of a language model", "forward and backward", "forward"
GOALS = {(BOTH, "LSTM"): 1.0, (FORWARD, "LSTM"): 1.0, (STEP, "LSTM"): 1.25, (STEP, "GRU"): 1.4}

Row = dict[str, Any]
Calls = dict[str, Callable[[], object]]


def tiny(kind: str, train: bool) -> Calls:
    """Some calls of a module of 16 units on one step of one row, with or without gradients."""
    found: Calls = {}
    for name, home in HOMES.items():
        torch.manual_seed(SEED)
        module = getattr(home, kind)(TINY_WIDTH, TINY_WIDTH)
        shape = (1, TINY_WIDTH) if kind.endswith("Cell") else (1, 1, TINY_WIDTH)
        x = torch.randn(shape, requires_grad=train)

        def forward(module: Any = module, x: Any = x) -> None:
            with torch.no_grad():
                for _ in range(TINY_CALLS):
                    module(x)

        def both(module: Any = module, x: Any = x) -> None:
            for _ in range(TINY_CALLS):
                out = module(x)
                (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()
                module.zero_grad()
                x.grad = None

        found[name] = both if train else forward
    return found


@dataclass(frozen=True)
class Model:
    """A word-level language model, and how it is trained."""

    cell: str
    V: int = 10_000
    H: int = 650
    layers: int = 2
    B: int = 20
    T: int = 35

    @property
    def name(self) -> str:
        return f"{self.cell} {self.H} ×{self.layers}, V {self.V:,}, B {self.B}, T {self.T}"


class WordModel(torch.nn.Module):
    """Embedding, recurrent layers, affine map to the words."""

    def __init__(self, of: Model) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(of.V, of.H)
        self.recurrent = getattr(torch.nn, of.cell)(of.H, of.H, of.layers)
        self.head = torch.nn.Linear(of.H, of.V)

    def forward(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        y, state = self.recurrent(self.embedding(tokens), state)
        return self.head(y), state


class Training:
    """Steps of truncated backpropagation, as a script has them; each has the next random tokens."""

    def __init__(self, of: Model, replaces: bool) -> None:
        torch.manual_seed(SEED)
        self.of, self.model = of, WordModel(of)
        if replaces:
            pynlm.torch.replace(self.model, verbose=False)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.generator = torch.Generator().manual_seed(SEED)
        self.state: Any = None
        self.losses: list[float] = []

    def __call__(self) -> None:
        of, state = self.of, self.state
        tokens = torch.randint(of.V, (of.T + 1, of.B), generator=self.generator)
        if isinstance(state, tuple):
            state = tuple(s.detach() for s in state)
        elif state is not None:
            state = state.detach()
        logits, self.state = self.model(tokens[:-1], state)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimiser.step()
        self.losses.append(loss.item())


def training(of: Model) -> dict[str, Training]:
    """The model as it is, and replaced."""
    return {name: Training(of, name == "pynlm") for name in HOMES}


def beside_products(step: Callable[[], object], size: int = 512) -> Callable[[], object]:
    """A step after a product by torch, whose threads still spin then, waiting for more."""
    a = torch.ones(size, size)

    def call() -> None:
        for _ in range(5):
            a @ a
            step()

    return call


def compared(
    group: str, name: str, calls: Mapping[str, Callable[[], object]], budget: Budget
) -> Row:
    """Median times of both, and how many times as fast ours is."""
    seconds = Contest(calls).run(budget)
    medians = {who: Times.of(found).median for who, found in seconds.items()}
    return {"group": group, "case": name, **medians, "ratio": medians["torch"] / medians["pynlm"]}


TINY = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
MODELS = (Model("LSTM"), Model("GRU"))
SMALL = (50, 32, 128)
"""T, B and width of the layer that runs beside products."""


def measure(budget: Budget) -> list[Row]:
    """All comparisons."""
    rows = []
    for train in (True, False):
        for kind in TINY:
            group = f"{BOTH if train else FORWARD}, T 1, B 1, H {TINY_WIDTH}"
            row = compared(group, kind, tiny(kind, train), budget)
            rows.append(row | {name: row[name] / TINY_CALLS for name in HOMES})
    for of in MODELS:
        both = training(of)
        row = compared(STEP, of.name, both, budget)
        steps = min(len(t.losses) for t in both.values())
        pairs = zip(*(t.losses[:steps] for t in both.values()), strict=True)
        rows.append(row | {"loss difference": max(abs(a - b) / a for a, b in pairs)})
    T, B, H = SMALL
    for kind in ("LSTM", "GRU"):
        calls: Calls = {}
        for name, home in HOMES.items():
            module, x = getattr(home, kind)(H, H), torch.randn(T, B, H)

            def step(module: Any = module, x: Any = x) -> None:
                module(x)[0].sum().backward()

            calls[name] = beside_products(step)
        shape = f"{kind} T {T}, B {B}, H {H}"
        rows.append(compared("five steps, each after a product of torch's", shape, calls, budget))
    return rows


def render(facts: dict[str, str], rows: list[Row], n: int) -> str:
    """The page."""
    parts = [
        "# pynlm.torch beside torch.nn",
        page.table(["", ""], facts.items()),
        f"Median times with {page.threads(n)}, in turns in one process. Speed: torch's time over "
        "pynlm's. The language model is the same script with and without "
        "`pynlm.torch.replace(model)`; its losses on the same tokens differ by at most "
        + " and ".join(f"{r['loss difference']:.1g}" for r in rows if "loss difference" in r)
        + " (relative).",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        table = []
        for row in rows:
            if row["group"] == group:
                goal = GOALS.get((group.partition(",")[0], row["case"].partition(" ")[0]))
                met = "" if goal is None else page.met(row["ratio"] >= goal)
                times = [page.duration(row[name]) for name in HOMES]
                aim = "" if goal is None else f"{goal:g}×"
                table.append([row["case"], *times, page.times(row["ratio"]), aim, met])
        head = ["", *HOMES, "speed", "goal", "met"]
        parts += [f"## {group[0].upper()}{group[1:]}", page.table(head, table)]
    parts.append("`python -m bench.dropin` makes this page.\n")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    given = options("dropin", __doc__, 4.0, "case").parse_args(arguments)
    report, budget = SmallPage("dropin"), Budget(given.seconds, least=5)
    report.facts["torch"] = torch.__version__
    rows = measure(budget)
    report.write(given.out, {"dropin": rows}, lambda facts, n: render(facts, rows, n))


if __name__ == "__main__":
    main()
