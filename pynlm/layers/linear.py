"""Linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from pynlm.kernels.linear import linear_backward, linear_forward
from pynlm.layers.backprop import Once
from pynlm.layers.context import Context
from pynlm.layers.convert import as_floats
from pynlm.layers.parameters import Parameter, Spec

Array = npt.NDArray[Any]


class Linear:
    """`y, backprop = layer(x, ctx)`: y = x weight^T + bias over the last dimension.

    Parameters
    ----------
    parameters
        Holds `{prefix}.weight` [O, I] and, if there is a bias, `{prefix}.bias` [O].
    prefix
        For example "projection".

    Examples
    --------
    >>> import numpy as np
    >>> from pynlm.layers import Parameters
    >>> layer = Linear(Parameters(Linear.specs("projection", 3, 5)), "projection")
    >>> y, backprop = layer(np.ones((7, 2, 3), np.float32), Context(train=True))
    >>> y.shape, backprop(y).shape
    ((7, 2, 5), (7, 2, 3))
    """

    def __init__(self, parameters: Mapping[str, Parameter], prefix: str) -> None:
        self.weight = parameters[f"{prefix}.weight"]
        self.bias = parameters.get(f"{prefix}.bias")
        self.name = f"Linear {prefix}"

    @staticmethod
    def specs(
        prefix: str, input_size: int, output_size: int, group: str = "linear", bias: bool = True
    ) -> list[Spec]:
        """The parameters that the layer needs, for `Parameters`."""
        weight = Spec(f"{prefix}.weight", (output_size, input_size), group)
        return [weight, Spec(f"{prefix}.bias", (output_size,), group)] if bias else [weight]

    def __call__(self, x: Array, ctx: Context) -> tuple[Array, LinearBackprop | None]:
        """Map x [..., I] to [..., O]; `dx = backprop(dy)`, None unless `ctx.train`.

        `x` is kept, and not to be changed, until backprop.

        Raises
        ------
        TypeError, ValueError
            Another dtype; another size.
        """
        w = self.weight.data
        x = as_floats(x, w.dtype)
        if x.shape[-1:] != w.shape[1:]:
            raise ValueError(f"{self.name}: x must be [..., I={w.shape[1]}], got {list(x.shape)}")
        rows = x.reshape(-1, w.shape[1])
        y = self.weight.pool.lease((len(rows), w.shape[0]), w.dtype)
        bias = None if self.bias is None else self.bias.data
        w = self.weight.for_product(len(rows))
        linear_forward(y=y, x=rows, w=w, b=bias, backend=ctx.backend)
        backprop = LinearBackprop(self.name, self, rows, x.shape, ctx) if ctx.train else None
        return y.reshape(*x.shape[:-1], w.shape[0]), backprop


class LinearBackprop(Once):
    """`dx = backprop(dy)`: adds to the gradients of weight and bias; may be called once."""

    __slots__ = ()

    def __call__(self, dy: Array) -> Array:
        """Gradient of the input [..., I] from `dy` [..., O]."""
        layer, x, shape, ctx = self._take()
        weight, bias = layer.weight, layer.bias
        outputs = weight.data.shape[0]
        dy = as_floats(dy, weight.data.dtype)
        if dy.shape != (*shape[:-1], outputs):
            want = [*shape[:-1], outputs]
            raise ValueError(f"{self._name}: dy must be {want}, got {list(dy.shape)}")
        dx: Array = weight.pool.like(x)
        rows = dy.reshape(-1, outputs)
        with weight.target() as dw:
            if bias is None:
                linear_backward(
                    dx=dx, dw=dw, db=None, dy=rows, x=x, w=weight.data, backend=ctx.backend
                )
            else:
                with bias.target() as db:
                    linear_backward(
                        dx=dx, dw=dw, db=db, dy=rows, x=x, w=weight.data, backend=ctx.backend
                    )
        dx = dx.reshape(shape)
        return dx
