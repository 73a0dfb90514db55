"""A language model as an ONNX model with explicit states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pynlm.layers import AdaptiveEmbedding

if TYPE_CHECKING:
    from onnx import ModelProto

    from pynlm.models import RecurrentLM
    from pynlm.onnx.graph import Graph

LARGEST = 2**31 - 2**20
"""Bytes of constants: an ONNX file is one protocol buffer of less than 2 GiB."""


def lm_to_onnx(model: RecurrentLM, metadata: Mapping[str, str] | None = None) -> ModelProto:
    """The ONNX model that computes what `model` computes when scoring.

    Dropout is left out, as in scoring. ONNX's own LSTM, GRU and RNN stand for cells that they can
    express, in float32; loops (Scan) over the cell's equations for all others, so every variant,
    every head and both embeddings can be exported.

    Inputs: `tokens`, int64 [T, B] with ids in [0, V) (negative ids are not refused, as ONNX has
    it), and for each recurrent layer l its state, `h.{l}` [B, H] and of an LSTM `c.{l}` [B, H],
    zero at the start of a text. Outputs: `log_prob` [T, B, V], natural logarithms of the
    probability of the token after each one; and the states after the last step, `h_last.{l}` and
    `c_last.{l}`, which go in with the tokens that follow. T and B are free, both at least 1
    (ONNX Runtime ends its process where there is no row).

    Parameters
    ----------
    model
        With its weights; float64 remains float64.
    metadata
        Name -> text, kept in the model's `metadata_props` beside `vocab_size` and `config` (the
        model's configuration as JSON), which it does not replace.

    Returns
    -------
    onnx.ModelProto
        Of operator set 14. `LanguageModel.export_onnx` writes one.

    Raises
    ------
    ImportError
        The package onnx is missing.
    ValueError
        More than 2 GiB of weights and other constants, which no ONNX file holds.

    Examples
    --------
    >>> from pynlm.models import RecurrentLM, RecurrentLMConfig
    >>> model = RecurrentLM(RecurrentLMConfig(vocab_size=11, embedding_size=4, hidden_sizes=(6,)))
    >>> made = lm_to_onnx(model)
    >>> [value.name for value in made.graph.input], [value.name for value in made.graph.output]
    (['tokens', 'h.0', 'c.0'], ['log_prob', 'h_last.0', 'c_last.0'])
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            f"lm_to_onnx: the package onnx is needed ({error}); pip install 'pynlm[onnx]'"
        ) from error
    from onnx import TensorProto, helper

    from pynlm.onnx.cells import add_layer
    from pynlm.onnx.graph import IR_VERSION, OPSET, Graph
    from pynlm.onnx.outputs import add_log_prob

    _require_room(sum(parameter.data.nbytes for parameter in model.parameters.values()))
    g, config = Graph(model.dtype), model.config
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["T", "B"])]
    log_prob = helper.make_tensor_value_info("log_prob", g.element, ["T", "B", config.vocab_size])
    outputs = [log_prob]
    x = _embedded(g, model)
    for layer in model.layers:
        names = [f"{kind}.{layer.index}" for kind in "hc"[: layer.states]]
        below, (x, last) = x, add_layer(g, layer, x, names)
        for name, end, width in zip(names, last, layer.state_sizes, strict=True):
            after = g.rename(end, name.replace(".", "_last."))
            inputs.append(helper.make_tensor_value_info(name, g.element, ["B", width]))
            outputs.append(helper.make_tensor_value_info(after, g.element, ["B", width]))
        if config.is_residual(layer.index):
            x = g("Add", x, below)
    flat = g("Reshape", x, np.array([-1, config.output_sizes[-1]]))
    shape = g("Concat", g("Shape", "tokens"), np.array([config.vocab_size]), axis=0)
    g.rename(g("Reshape", add_log_prob(g, model.head, flat), shape), "log_prob")
    # Trees add tables, loops the transposed weights.
    _require_room(sum(len(constant.raw_data) for constant in g.constants.values()))
    graph = helper.make_graph(
        g.nodes, "RecurrentLM", inputs, outputs, list(g.constants.values()),
        doc_string="Inputs: tokens [T, B] and states (zero at first); outputs: log-probabilities "
        "in nats of the token after each, and the new states.",
    )  # fmt: skip
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="pynlm", producer_version=_version(),
    )  # fmt: skip
    facts = {"vocab_size": str(config.vocab_size), "config": json.dumps(config.to_dict())}
    helper.set_model_props(made, {**(metadata or {}), **facts})
    onnx.checker.check_model(made)
    return made


def _require_room(size: int) -> None:
    if size > LARGEST:
        raise ValueError(
            f"lm_to_onnx: model must have less than 2 GiB of weights and other constants, which "
            f"is what an ONNX file can hold, got {size / 2**30:.1f} GiB"
        )


def _embedded(g: Graph, model: RecurrentLM) -> str:
    """Name of the embedded tokens [T, B, D]."""
    embedding = model.embedding
    if not isinstance(embedding, AdaptiveEmbedding):
        return g("Gather", embedding.weight, "tokens")
    # Every token is looked up in every table, and the table of its cluster counts.
    x = ""
    firsts = (0, *embedding.cutoffs)
    clusters = zip(firsts, embedding.tables, embedding.projections, strict=True)
    for first, table, projection in clusters:
        place = g("Sub", "tokens", np.array(first))
        # Ids beyond the last cluster stay wrong, and are refused.
        last = table is embedding.tables[-1]
        bounds = [np.array(0)] if last else [np.array(0), np.array(len(table.weight.data) - 1)]
        rows = g("Gather", table.weight, g("Clip", place, *bounds))
        y = g("MatMul", rows, np.ascontiguousarray(projection.weight.data.T))
        if x:
            here = g("Unsqueeze", g("GreaterOrEqual", "tokens", np.array(first)), np.array([2]))
            y = g("Where", here, y, x)
        x = y
    return x


def _version() -> str:
    import pynlm

    return pynlm.__version__
