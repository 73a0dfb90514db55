"""torch.nn.LSTMCell, GRUCell and RNNCell on pynlm's kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pynlm.torch.autograd import NATIVE_CELLS, Call, RecurrentCell, dense
from pynlm.torch.module import (
    Variants,
    add_extras,
    reset_extras,
    states_as,
    wants_graph,
)
from pynlm.torch.operators import context, recurrent
from pynlm.torch.stack import extra_weights
from pynlm.torch.tensors import NUMPY, readable, uniform, watched

_OWN = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(Variants, torch.nn.modules.rnn.RNNCellBase):
    """What the three share; stands before torch's class among the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = self._take_options(kwargs)
        super().__init__(*args, **kwargs)
        if options is None:
            return
        self._set_options(options)
        like, size = self.weight_ih, self.hidden_size
        if options.coupled_gates:
            for name in _OWN:
                p = getattr(self, name)
                if p is not None:
                    shape = (3 * size, *p.shape[1:])
                    setattr(self, name, torch.nn.Parameter(like.new_empty(shape)))
        shapes = extra_weights(self.cell, size, options)
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

    def _mode(self) -> str:
        return self.cell

    def _settings(self) -> str:
        return f"{self._mode()} {self.hidden_size} 0 1 0 {int(bool(self.bias))} {self.options_text}"

    def _weight_names(self) -> list[str]:
        return [*_OWN[: 4 if self.bias else 2], *self.extra_names]

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_pynlm", None)
        return state

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """As torch's module.

        Parameters
        ----------
        input
            [B, I], or [I].
        hx
            State as torch's module takes it; None: zeros.

        Returns
        -------
        state
            As torch's module.

        Raises
        ------
        RuntimeError, ValueError
            What torch's module raises for the same mistake.
        NotImplementedError
            A variant of another dtype than float32 and float64, on another device than the CPU, or
            within torch.func's transforms.
        """
        compiling = torch.compiler.is_compiling()
        plain = self.options is None and not compiling
        if plain and self._is_small(input.shape[0] if input.dim() == 2 else 1):
            return self._small(input, hx)
        if compiling:
            weights = [getattr(self, name) for name in self._weight_names()]
            # an exported graph is to run where pynlm is not
            exported = torch.compiler.is_exporting() and self.options is None
            usable = input.device.type == "cpu" and input.dtype in NUMPY and not exported
        else:
            stack, names, calls = self._stack()
            weights = self._weights(names)
            usable = readable(input) and readable(weights[0]) and not watched()
        if not usable or input.numel() == 0:
            return self._elsewhere(input, hx)
        x = input
        if not uniform(weights, x.dtype):
            return self._elsewhere(input, hx)
        flat = x.dim() == 1
        if flat:
            x = x[None]
        shape = (self.hidden_size,) if flat else (x.shape[0], self.hidden_size)
        states = states_as(hx, [shape] * (2 if self.cell == "LSTM" else 1), x)
        fits = x.dim() == 2 and x.shape[1] == self.input_size
        if not fits or states is None:
            return self._elsewhere(input, hx)
        h, c = states
        if flat and h is not None:
            h, c = h[None], None if c is None else c[None]
        seed, saves = self._seed(), wants_graph(x, states, weights)
        if compiling:
            y, _, c_n, _ = recurrent(
                x[None], h if h is None else h[None], c if c is None else c[None], weights, None,
                seed, self._settings(), x.shape[0], 0, self.training, saves,
            )  # fmt: skip
            out: Any = (y[0], c_n[0]) if self.cell == "LSTM" else y[0]
        else:
            call = calls[self.draws and self.training]
            if seed is not None:
                call = Call(stack, context(True, seed), call.memory)
            if saves:
                out = RecurrentCell.apply(call, x, h, c, *weights)
            else:
                out = call.step(x.detach().contiguous(), dense(h), dense(c), weights, False)[:-1]
                out = out if self.cell == "LSTM" else out[0]
        if not flat:
            return out
        return (out[0][0], out[1][0]) if self.cell == "LSTM" else out[0]

    def _small(self, x: Tensor, hx: Any) -> Any:
        """torch's operation, without most of what its module does around it."""
        own: Any = self._parameters
        try:
            weights = own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
        except KeyError:  # parametrised
            return super().forward(x, hx)
        if x.dim() != 2 or not (hx is None or self._is_rows(hx)):
            return super().forward(x, hx)
        if hx is None:
            hx = torch.zeros((x.shape[0], self.hidden_size), dtype=x.dtype, device=x.device)
            hx = (hx, hx) if self.cell == "LSTM" else hx
        return NATIVE_CELLS[self._mode()](x, hx, *weights)

    def _is_rows(self, hx: Any) -> bool:
        """Whether a state is one of rows, whose sizes torch's operation checks."""
        if self.cell != "LSTM":
            return isinstance(hx, Tensor) and hx.dim() == 2
        return isinstance(hx, tuple) and len(hx) == 2 and hx[0].dim() == hx[1].dim() == 2

    def _twin(self) -> torch.nn.Module:
        return self.torch_class(
            self.input_size, self.hidden_size, self.bias, device="meta", dtype=self.weight_ih.dtype
        )


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on pynlm's kernels, with pynlm's variants.

    Parameters
    ----------
    *args, **kwargs
        torch.nn.LSTMCell's: input_size, hidden_size, bias=True, device=None, dtype=None.
    layer_norm, zoneout, peephole, ...
        By keyword: as `LSTM` has them. A step is a call: in training each draws its own masks.

    Raises
    ------
    TypeError, ValueError
        A wrong setting.

    Examples
    --------
    >>> h, c = LSTMCell(3, 5, peephole=True)(torch.zeros(2, 3))
    >>> c.shape
    torch.Size([2, 5])
    """

    cell, gates = "LSTM", 4
    torch_class = torch.nn.LSTMCell


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell on pynlm's kernels, with pynlm's variants.

    Parameters
    ----------
    *args, **kwargs
        torch.nn.GRUCell's: input_size, hidden_size, bias=True, device=None, dtype=None.
    layer_norm, zoneout, reset_before, ...
        By keyword: as `GRU` has them. A step is a call: in training each draws its own masks.

    Raises
    ------
    TypeError, ValueError
        A wrong setting.

    Examples
    --------
    >>> GRUCell(3, 5, reset_before=True)(torch.zeros(2, 3)).shape
    torch.Size([2, 5])
    """

    cell, gates = "GRU", 3
    torch_class = torch.nn.GRUCell


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell on pynlm's kernels, with pynlm's variants.

    Parameters
    ----------
    *args, **kwargs
        torch.nn.RNNCell's: input_size, hidden_size, bias=True, nonlinearity="tanh", device=None,
        dtype=None.
    layer_norm, zoneout, ...
        By keyword: as `RNN` has them. A step is a call: in training each draws its own masks.

    Raises
    ------
    TypeError, ValueError
        A wrong setting.

    Examples
    --------
    >>> RNNCell(3, 5, nonlinearity="relu")(torch.zeros(2, 3)).shape
    torch.Size([2, 5])
    """

    cell, gates = "RNN", 1
    torch_class = torch.nn.RNNCell

    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """As torch's module."""
        if self.nonlinearity not in ("tanh", "relu"):  # torch's error
            return self.torch_class.forward(self, input, hx)
        return super().forward(input, hx)
