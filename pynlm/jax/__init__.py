"""Recurrent layers for JAX on the CPU: LSTM, GRU and RNN on pynlm's kernels.

Functions of weights and arrays with gradients (`jax.custom_vjp`), for use under `jax.jit` and
`jax.grad`; under `jax.vmap` they run one after another. Second derivatives are refused by name.

XLA calls the kernels directly where pynlm was built beside jaxlib's headers, else through Python,
which takes longer for short sequences: `calls_by` says which, and so does `pynlm info`. The direct
calls are for the CPU only: where JAX has an accelerator, `JAX_PLATFORMS=cpu` keeps a program from
it.
"""

from pynlm.jax.calls import calls_by
from pynlm.jax.recurrent import gru, initial_weights, lstm, rnn

__all__ = ["calls_by", "gru", "initial_weights", "lstm", "rnn"]
