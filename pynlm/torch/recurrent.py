"""torch.nn.LSTM, GRU and RNN on pynlm's kernels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pynlm.layers import RecurrentOptions
from pynlm.torch.autograd import NATIVE, Call, RecurrentStack, dense
from pynlm.torch.module import (
    Variants,
    add_extras,
    reset_extras,
    states_as,
    wants_graph,
)
from pynlm.torch.operators import context, recurrent
from pynlm.torch.rows import is_sound
from pynlm.torch.stack import extra_weights
from pynlm.torch.tensors import NUMPY, readable, uniform, watched


class _Recurrent(Variants, torch.nn.RNNBase):
    """What the three share; stands before torch's class among the bases."""

    few_steps: ClassVar[int]
    """As many as torch's own code takes sooner where there is little to compute."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = self._take_options(kwargs)
        super().__init__(*args, **kwargs)
        if options is not None:
            self._add(options)

    def _add(self, options: RecurrentOptions) -> None:
        """Make the plain module one with options."""
        self._set_options(options)
        like, size = getattr(self, self._flat_weights_names[0]), self.hidden_size
        if options.coupled_gates:
            for name in self._flat_weights_names:
                if not name.startswith("weight_hr"):
                    shape = (3 * size, *getattr(self, name).shape[1:])
                    setattr(self, name, torch.nn.Parameter(like.new_empty(shape)))
            self._init_flat_weights()
        shapes = {
            f"{kind}_l{layer}{way}": shape
            for layer in range(self.num_layers)
            for way in ("", "_reverse")[: 1 + self.bidirectional]
            for kind, shape in extra_weights(self.cell, size, options).items()
        }
        add_extras(self, shapes, like)
        self.extra_names = tuple(shapes)
        if options.coupled_gates:
            self.reset_parameters()
        else:
            reset_extras(self, shapes, 1 / math.sqrt(size))

    def reset_parameters(self) -> None:
        """As torch's; layer norm starts from gains 1 and biases 0."""
        super().reset_parameters()
        reset_extras(self, self.extra_names)

    def _weight_names(self) -> list[str]:
        """Names in the order in which a `Stack` takes weights."""
        own, extra = self._flat_weights_names, self.extra_names
        if not extra:
            return own
        k = self.num_layers * (2 if self.bidirectional else 1)
        n, e = len(own) // k, len(extra) // k
        names: list[str] = []
        for i in range(k):
            names += [*own[i * n : i * n + n], *extra[i * e : i * e + e]]
        return names

    def _settings(self) -> str:
        """What `Stack` is made of."""
        return (
            f"{self.mode} {self.hidden_size} {self.proj_size} {self.num_layers} "
            f"{int(bool(self.bidirectional))} {int(bool(self.bias))} {self.options_text}"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_pynlm", None)
        return state

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch's module.

        Parameters
        ----------
        input
            [T, B, I], with `batch_first` [B, T, I], unbatched [T, I], or a PackedSequence.
        hx
            Initial state as torch's module takes it; None: zeros.

        Returns
        -------
        output, state
            As torch's module.

        Raises
        ------
        RuntimeError, ValueError
            What torch's module raises for the same mistake.
        NotImplementedError
            A variant of another dtype than float32 and float64, on another device than the CPU, or
            within torch.func's transforms.
        """
        packed = isinstance(input, PackedSequence)
        compiling = torch.compiler.is_compiling()
        plain = self.few_steps and self.options is None and not packed and not compiling
        if plain and input.dim() == 3:
            steps, rows = input.shape[:2]
            few = (rows if self.batch_first else steps) <= self.few_steps
            if few and self._is_small(steps * rows * self.num_layers):
                return self._small(input, hx)
        if packed:
            x, sizes, order, back = input
        else:
            x, sizes, order, back = input, None, None, None
        if compiling:
            weights = [getattr(self, name) for name in self._weight_names()]
            # an exported graph is to run where pynlm is not
            exported = torch.compiler.is_exporting() and self.options is None
            usable = x.device.type == "cpu" and x.dtype in NUMPY and not exported
        else:
            stack, names, calls = self._stack()
            weights = self._weights(names)
            usable = readable(x) and readable(weights[0]) and not watched()
        if not usable or x.numel() == 0:
            return self._elsewhere(input, hx)
        flat = x.dim() == 2 and not packed
        if flat:
            x = x.unsqueeze(1)
        elif self.batch_first and not packed and x.dim() == 3:
            x = x.transpose(0, 1)
        fits = x.dim() == (2 if packed else 3) and x.shape[-1] == self.input_size
        if not fits or not uniform(weights, x.dtype):
            return self._elsewhere(input, hx)
        batch = x.shape[1] if sizes is None else _batch(sizes, back)
        if sizes is not None and not compiling and not is_sound(sizes, batch, len(x)):
            return self._elsewhere(input, hx)
        states = states_as(hx, self._state_shapes(None if flat else batch), x)
        if states is None:
            return self._elsewhere(input, hx)
        h, c = states
        if h is not None and flat:
            h, c = h.unsqueeze(1), None if c is None else c.unsqueeze(1)
        elif h is not None and order is not None:
            h, c = h.index_select(1, order), None if c is None else c.index_select(1, order)

        masks = self._masks(x)
        seed = self._seed()
        saves = wants_graph(x, states, weights)
        rest = masks + weights
        out: tuple[Tensor, ...]
        if compiling:
            y, h_n, c_n, _ = recurrent(
                x, h, c, rest, sizes, seed, self._settings(), batch, len(masks), self.training,
                saves,
            )  # fmt: skip
            out = (y, h_n, c_n) if self.mode == "LSTM" else (y, h_n)
        else:
            call = calls[self.training]
            if masks or seed is not None or packed:
                call = Call(stack, context(self.training, seed), call.memory, sizes, len(masks))
            if saves:
                out = RecurrentStack.apply(call, x, h, c, *rest)
            else:
                x = x.detach().contiguous()
                y, h_n, c_n, _ = call.run(x, dense(h), dense(c), rest, False)
                out = (y, h_n) if c_n is None else (y, h_n, c_n)
        return self._results(out, input, flat)

    def _small(self, x: Tensor, hx: Any) -> Any:
        """torch's operation, without most of what its module does around it."""
        weights = self._weights(self._flat_weights_names)
        both = bool(self.bidirectional)
        fits = x.shape[2] == self.input_size and x.dtype is weights[0].dtype and x.numel() > 0
        if not fits or not (hx is None or isinstance(hx, Tensor)):
            return super().forward(x, hx)
        shape = (self.num_layers * (1 + both), x.shape[not self.batch_first], self.hidden_size)
        if hx is None:
            hx = torch.zeros(shape, dtype=x.dtype, device=x.device)
        elif hx.shape != shape:
            return super().forward(x, hx)
        return NATIVE[self.mode](
            x, hx, weights, self.bias, self.num_layers, self.dropout, self.training, both,
            self.batch_first,
        )  # fmt: skip

    def _state_shapes(self, batch: int | None) -> list[tuple[int, ...]]:
        """Shapes of h and (LSTM) c, without batch unbatched."""
        k = self.num_layers * (2 if self.bidirectional else 1)
        rows = (k,) if batch is None else (k, batch)
        shapes = [(*rows, self.proj_size or self.hidden_size)]
        return [*shapes, (*rows, self.hidden_size)] if self.mode == "LSTM" else shapes

    def _masks(self, x: Tensor) -> list[Tensor]:
        """Dropout between layers, drawn by torch's generator as torch's modules draw it."""
        if not (self.training and self.dropout > 0 and self.num_layers > 1):
            return []
        width = (self.proj_size or self.hidden_size) * (2 if self.bidirectional else 1)
        ones = torch.ones((*x.shape[:-1], width), dtype=x.dtype, device="cpu")
        return [torch.dropout(ones, self.dropout, True) for _ in range(self.num_layers - 1)]

    def _results(self, out: tuple[Tensor, ...], input: Any, flat: bool) -> Any:
        """Outputs and states in the caller's shapes."""
        y: Any
        y, *states = out
        if isinstance(input, PackedSequence):
            _, sizes, order, back = input
            if back is not None:
                states = [s.index_select(1, back) for s in states]
            y = PackedSequence(y, sizes, order, back)
        elif flat:
            y, states = y.squeeze(1), [s.squeeze(1) for s in states]
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, tuple(states) if self.mode == "LSTM" else states[0]

    def _twin(self) -> torch.nn.Module:
        return self.torch_class(
            self.input_size, self.hidden_size, self.num_layers, bias=self.bias,
            batch_first=self.batch_first, bidirectional=self.bidirectional, device="meta",
            dtype=getattr(self, self._flat_weights_names[0]).dtype,
            **({"proj_size": self.proj_size} if self.proj_size else {}),
        )  # fmt: skip


class LSTM(_Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM on pynlm's kernels, with pynlm's variants.

    Parameters
    ----------
    *args, **kwargs
        torch.nn.LSTM's: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
        dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None.
    recurrent_dropout, weight_drop, zoneout, zoneout_cell, layer_norm, layer_norm_state, peephole,
    coupled_gates, cell_clip, state_clip
        By keyword: as in `pynlm.layers.RecurrentOptions`. What training draws for them comes of
        one number from torch's generator a call.

    Raises
    ------
    TypeError, ValueError
        torch.nn.LSTM's; a variant outside its range.

    Notes
    -----
    Parameters have torch's names, shapes and first values. Variants add, for each layer and
    direction, `peephole_l0` [3H], `ln_gates_l0` [2, 4H] and `ln_cell_l0` [2, H] (`_reverse` for the
    other direction), and with coupled gates have 3H for 4H and 2H for 3H.

    Examples
    --------
    >>> lstm = LSTM(3, 5, num_layers=2, zoneout=0.1, layer_norm=True)
    >>> y, (h, c) = lstm(torch.zeros(7, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([7, 2, 5]), torch.Size([2, 2, 5]))
    >>> isinstance(lstm, torch.nn.LSTM)
    True
    """

    cell, gates, few_steps = "LSTM", 4, 0
    torch_class = torch.nn.LSTM


class GRU(_Recurrent, torch.nn.GRU):
    """torch.nn.GRU on pynlm's kernels, with pynlm's variants.

    Parameters
    ----------
    *args, **kwargs
        torch.nn.GRU's: as `LSTM`'s, without proj_size.
    recurrent_dropout, weight_drop, zoneout, layer_norm, state_clip, reset_before
        By keyword: as in `pynlm.layers.RecurrentOptions`. Layer norm adds `ln_gates_l0` [2, 3H].

    Raises
    ------
    TypeError, ValueError
        As `LSTM`; a variant that a GRU does not have.

    Examples
    --------
    >>> y, h = GRU(3, 5, bidirectional=True, reset_before=True)(torch.zeros(7, 2, 3))
    >>> y.shape
    torch.Size([7, 2, 10])
    """

    cell, gates, few_steps = "GRU", 3, 1
    torch_class = torch.nn.GRU


class RNN(_Recurrent, torch.nn.RNN):
    """torch.nn.RNN on pynlm's kernels, with pynlm's variants.

    Parameters
    ----------
    *args, **kwargs
        torch.nn.RNN's: as `GRU`'s, and nonlinearity="tanh" or "relu" after num_layers.
    recurrent_dropout, weight_drop, zoneout, layer_norm, state_clip
        By keyword: as in `pynlm.layers.RecurrentOptions`. Layer norm adds `ln_gates_l0` [2, H].

    Raises
    ------
    TypeError, ValueError
        As `LSTM`; a variant that an RNN does not have.

    Examples
    --------
    >>> y, h = RNN(3, 5, nonlinearity="relu", zoneout=0.2)(torch.zeros(7, 2, 3))
    >>> y.shape
    torch.Size([7, 2, 5])
    """

    cell, gates, few_steps = "RNN", 1, 2
    torch_class = torch.nn.RNN


def _batch(sizes: Tensor, back: Tensor | None) -> int:
    """Rows of a packed sequence, from a shape if one says it."""
    if back is not None:
        return back.shape[0]
    return int(sizes[0])
