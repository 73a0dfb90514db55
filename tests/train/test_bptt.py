"""Training steps against the same model in torch, in float64: losses, norms and weights agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pynlm.models import RecurrentLM, RecurrentLMConfig
from pynlm.text import Batch, ContiguousBatches, SentenceBatches
from pynlm.train import BPTT, TrainingDiverged
from pynlm.train.config import OptimiserConfig, TrainConfig
from pynlm.train.optimisers import make_optimiser

torch = pytest.importorskip("torch")

V, E, H = 23, 6, (7, 5)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """torch's spinning threads take many times longer than the work where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(cell: str, tied: bool = False) -> RecurrentLM:
    config = RecurrentLMConfig(
        vocab_size=V,
        embedding_size=E,
        hidden_sizes=(H[0], E) if tied else H,
        cell=cell,
        tied=tied,
        init="uniform",
        init_bias="uniform",
        init_scale=0.3,
    )
    model = RecurrentLM(config, dtype=np.float64)
    model.initialise(3)
    return model


class Twin(torch.nn.Module):
    """The same model in torch, from the same weights."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        config, state = model.config, model.state_dict()
        self.embedding = torch.nn.Embedding(V, config.embedding_size, dtype=torch.float64)
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[config.cell]
        widths = (config.embedding_size, *config.hidden_sizes)
        self.layers = torch.nn.ModuleList(
            kind(widths[i], widths[i + 1], dtype=torch.float64)
            for i in range(len(config.hidden_sizes))
        )
        self.head = torch.nn.Linear(widths[-1], V, dtype=torch.float64)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor(state["embedding.weight"]))
            self.head.bias.copy_(torch.tensor(state["head.bias"]))
            if config.tied:
                self.head.weight = self.embedding.weight
            else:
                self.head.weight.copy_(torch.tensor(state["head.weight"]))
            for i, layer in enumerate(self.layers):
                prefix = f"recurrent.{i}."
                layer.weight_ih_l0.copy_(torch.tensor(state[prefix + "w_ih"]))
                layer.weight_hh_l0.copy_(torch.tensor(state[prefix + "w_hh"]))
                layer.bias_ih_l0.copy_(torch.tensor(state[prefix + "b"]))
                layer.bias_hh_l0.zero_()
                if config.cell == "gru":
                    n = config.hidden_sizes[i]
                    layer.bias_hh_l0[2 * n :].copy_(torch.tensor(state[prefix + "b_hn"]))
                # One bias here, two there: only one of them learns, but a GRU's b_hn does.
                layer.bias_hh_l0.requires_grad_(config.cell == "gru")
                if config.cell == "gru":
                    layer.bias_hh_l0.register_hook(keep_last_third)
        self.state: list[Any] = [None] * len(self.layers)

    def nll(self, batch: Batch) -> Any:
        """[T, B], with the state carried unless the batch is fresh."""
        x = self.embedding(torch.tensor(batch.ids, dtype=torch.long))
        for i, layer in enumerate(self.layers):
            x, state = layer(x, None if batch.fresh else self.state[i])
            parts = state if isinstance(state, tuple) else (state,)
            detached = tuple(part.detach() for part in parts)
            self.state[i] = detached if isinstance(state, tuple) else detached[0]
        logits = self.head(x).reshape(-1, V)
        targets = torch.tensor(batch.targets, dtype=torch.long).reshape(-1)
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return nll.reshape(batch.ids.shape)


def keep_last_third(gradient: Any) -> Any:
    mask = torch.zeros_like(gradient)
    mask[2 * len(mask) // 3 :] = 1.0
    return gradient * mask


CASES = [
    ("lstm", False, {"loss": "sum_time", "clip_norm": 0.8}, {"kind": "sgd", "lr": 0.5}),
    ("lstm", False, {"loss": "mean", "clip_norm": 0.1}, {"kind": "adam", "lr": 0.02}),
    ("lstm", True, {"loss": "mean", "clip_value": 0.01}, {"kind": "momentum", "lr": 2.0}),
    ("gru", False, {"loss": "sum_time", "clip_norm": 0.8}, {"kind": "sgd", "lr": 0.5}),
    ("rnn_tanh", False, {"loss": "mean"}, {"kind": "adagrad", "lr": 0.05, "eps": 1e-10}),
]

NAMES = [f"{cell}-{rule['kind']}" for cell, _, _, rule in CASES]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("batching", ["contiguous", "sentences"])
@pytest.mark.parametrize("cell,tied,train,rule", CASES, ids=NAMES)
def test_twenty_steps_follow_torch(
    cell: str,
    tied: bool,
    train: dict[str, Any],
    rule: dict[str, Any],
    batching: str,
    backend: str,
) -> None:
    config, optimiser = TrainConfig(**train), OptimiserConfig(**rule)
    model = make_model(cell, tied)
    twin = Twin(model)
    learning = [p for p in twin.parameters() if p.requires_grad]
    other = {
        "sgd": lambda: torch.optim.SGD(learning, lr=rule["lr"]),
        "momentum": lambda: torch.optim.SGD(learning, lr=rule["lr"], momentum=0.9),
        "adam": lambda: torch.optim.Adam(learning, lr=rule["lr"]),
        "adagrad": lambda: torch.optim.Adagrad(learning, lr=rule["lr"]),
    }[optimiser.kind]()
    bptt = BPTT(
        model,
        make_optimiser(optimiser, model.parameters, backend=backend),
        config,
        backend=backend,
    )
    ids = (np.random.default_rng(0).zipf(1.6, 4000) % V).astype(np.int32)
    batches: Any
    if batching == "contiguous":
        batches = ContiguousBatches(ids, 4, 9)
    else:
        batches = SentenceBatches(ids, 1, 4, seed=1)
    losses = []
    for step in range(20):
        batch = batches[step]
        result = bptt.step(batch, lr=rule["lr"], step=step)
        nll = twin.nll(batch)
        rows, tokens = batch.ids.shape[1], batch.tokens
        if batch.lengths is not None:
            inside = np.arange(len(batch.ids))[:, None] < batch.lengths
            nll = nll * torch.tensor(inside)
        total = nll.sum()
        other.zero_grad()
        (total / (rows if config.loss == "sum_time" else tokens)).backward()
        if config.clip_value is not None:
            torch.nn.utils.clip_grad_value_(learning, config.clip_value)
        norm = torch.sqrt(sum((p.grad**2).sum() for p in learning))
        if config.clip_norm is not None and norm > config.clip_norm:
            for p in learning:
                p.grad *= config.clip_norm / norm
        other.step()
        losses.append((result.nats / tokens, float(total.detach()) / tokens))
        assert result.nats == pytest.approx(float(total.detach()), rel=1e-9)
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-7)
    ours = model.state_dict()
    np.testing.assert_allclose(
        ours["embedding.weight"], twin.embedding.weight.detach().numpy(), rtol=0, atol=1e-8
    )
    for i, layer in enumerate(twin.layers):
        np.testing.assert_allclose(
            ours[f"recurrent.{i}.w_hh"], layer.weight_hh_l0.detach().numpy(), rtol=0, atol=1e-8
        )
    first, last = np.mean(losses[:3], axis=0), np.mean(losses[-3:], axis=0)
    assert last[0] < first[0], "the loss falls"


def test_a_step_that_is_no_number_changes_nothing() -> None:
    model = make_model("lstm")
    bptt = BPTT(
        model,
        make_optimiser(OptimiserConfig(kind="adam"), model.parameters, backend="reference"),
        TrainConfig(),
        backend="reference",
    )
    batches = ContiguousBatches(np.arange(400) % V, 4, 9)
    bptt.step(batches[0], lr=0.1, step=1)
    model.parameters["head.bias"].data[0] = np.nan
    before = model.parameters.data.tobytes(), {k: x.tobytes() for k, x in bptt.tensors().items()}
    with pytest.raises(TrainingDiverged, match=r"the loss of step 2 is nan"):
        bptt.step(batches[1], lr=0.1, step=2)
    after = model.parameters.data.tobytes(), {k: x.tobytes() for k, x in bptt.tensors().items()}
    assert before == after


class Poisoned:
    """A model whose backward pass leaves `value` in one element of a gradient."""

    def __init__(self, model: RecurrentLM, where: str, value: float) -> None:
        self.model, self.where, self.value = model, where, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        nll, state, backprop = self.model(*arguments, **options)

        def poisoned() -> None:
            backprop()
            parameter = self.model.parameters[self.where]
            sparse = parameter.state == "rows"
            (parameter.rows[1] if sparse else parameter.grad).flat[-1] = self.value

        return nll, state, poisoned


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "clip", [{}, {"clip_value": 0.1}, {"clip_norm": 1.0}, {"clip_value": 0.1, "clip_norm": 1.0}]
)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", ["head.bias", "embedding.weight"])
def test_no_clipping_hides_a_gradient_that_is_not_finite(
    where: str, value: float, clip: dict[str, float], backend: str
) -> None:
    model = make_model("lstm")
    optimiser = make_optimiser(OptimiserConfig(kind="adam"), model.parameters, backend=backend)
    bptt = BPTT(model, optimiser, TrainConfig(**clip), backend=backend)
    batches = ContiguousBatches(np.arange(400) % V, 4, 9)
    bptt.step(batches[0], lr=0.1, step=1)
    before = model.parameters.data.tobytes(), {k: x.tobytes() for k, x in bptt.tensors().items()}
    bptt.model = Poisoned(model, where, value)  # type: ignore[assignment]
    with pytest.raises(TrainingDiverged, match=r"the gradient's norm of step 2 is (inf|nan)"):
        bptt.step(batches[1], lr=0.1, step=2)
    after = model.parameters.data.tobytes(), {k: x.tobytes() for k, x in bptt.tensors().items()}
    assert before == after


def test_state_that_does_not_fit_is_named() -> None:
    model = make_model("lstm")
    bptt = BPTT(model, make_optimiser(OptimiserConfig(), model.parameters), TrainConfig())
    state = {f"state.{l}.{i}": np.zeros((4, H[l])) for l in (0, 1) for i in (0, 1)}
    bptt.load_tensors(state)
    assert set(bptt.tensors()) == set(state)
    with pytest.raises(ValueError, match=r"recurrent state 1.0 must be float64 \[4, 5\], got noth"):
        bptt.load_tensors({k: x for k, x in state.items() if k != "state.1.0"})
    bptt.load_tensors({})
    assert bptt.state is None


def test_no_memory_is_taken_in_a_steady_state() -> None:
    model = make_model("lstm")
    bptt = BPTT(
        model,
        make_optimiser(OptimiserConfig(kind="adam"), model.parameters, backend="reference"),
        TrainConfig(clip_norm=1.0),
        backend="reference",
    )
    batches = ContiguousBatches(np.arange(4000) % V, 4, 9)
    for k in range(3):
        bptt.step(batches[k], lr=0.1, step=k)
    before = model.pool.allocations
    for k in range(3, 40):
        bptt.step(batches[k], lr=0.1, step=k)
    assert model.pool.allocations == before
