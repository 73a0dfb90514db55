"""An evaluation as people read it and as programs do (JSON)."""

from __future__ import annotations

import json
import math
from typing import Any

from pynlm.evaluate.perplexity import Evaluation


def to_json(evaluation: Evaluation, **extra: Any) -> str:
    """One JSON object: ``extra`` first, then ``Evaluation.to_dict``; infinities become null."""
    record = {**extra, **evaluation.to_dict()}
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, indent=2, ensure_ascii=False)


def to_text(evaluation: Evaluation, title: str) -> str:
    """The report for people: figures, the counts under them, how they were made."""
    lines = [f"{name:<25} {value:>10}  {note}".rstrip() for name, value, note in rows(evaluation)]
    return "\n".join([title, *lines])


def rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """``(name, value, note)`` of every line of the report; absent figures are left out."""
    e = evaluation
    out = [
        ("perplexity", _figure(e.perplexity), f"over all {e.tokens:,} scored tokens"),
        ("nats per token", f"{e.nats_per_token:.4f}", ""),
        ("bits per token", f"{e.bits_per_token:.4f}", ""),
    ]
    if e.bits_per_character is not None and e.characters is not None:
        note = f"over {e.characters:,} characters"
        out.append(("bits per character", f"{e.bits_per_character:.4f}", note))
    if e.perplexity_without_eos is not None and e.eos_tokens is not None:
        note = f"over {e.tokens - e.eos_tokens:,} tokens: <eos> not counted"
        out.append(("perplexity without <eos>", _figure(e.perplexity_without_eos), note))
    if e.perplexity_without_unk is not None and e.unk_tokens is not None:
        note = f"over the {e.tokens - e.unk_tokens:,} targets that are not <unk>"
        out.append(("perplexity without <unk>", _figure(e.perplexity_without_unk), note))
    if e.perplexity_per_word is not None and e.eos_tokens is None and e.words is not None:
        note = f"over {e.words:,} words"
        out.append(("perplexity per word", _figure(e.perplexity_per_word), note))
    if e.log_z_mean is not None and e.log_z_variance is not None:
        note = f"variance {e.log_z_variance:.4f}; both 0 for a head that normalises itself"
        out.append(("mean log Z", f"{e.log_z_mean:.4f}", note))
    if e.sentences is not None:
        out.append(("state", "reset", f"before each of {e.sentences:,} sentences"))
    elif e.stripes > 1:
        note = f"in {e.stripes} stripes, each from zero: approximate"
        out.append(("state", "carried", note))
    else:
        out.append(("state", "carried", "one stream from a zero state"))
    if e.start_token is not None:
        out.append(("first context", e.start_token, "read before the first scored token"))
    return out


def _figure(value: float) -> str:
    return f"{value:.4f}" if value < 1e6 else f"{value:.4e}"
