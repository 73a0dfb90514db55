"""Arguments of the losses over sampled tokens, see `arguments`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .cases import Case

Arguments = dict[str, Any]


def forward(case: Case, dtype: Any) -> Arguments:
    """Of `candidates_forward`."""
    N, H, V, K = (case.dims[k] for k in "NHVK")
    options, rng = case.options, case.rng("main")
    h, w, b = rng.normal(size=(N, H)), rng.normal(size=(V, H)), rng.normal(size=V)
    w *= options.get("weight_scale", 1.0) / np.sqrt(H)
    # Squaring favours small ids, so that some targets repeat and some are samples.
    targets = (V * rng.random(N) ** 2).astype(np.int32)
    if options.get("targets") == "same":
        targets[:] = V // 2
    samples = np.sort(rng.permutation(V)[:K]).astype(np.int32)
    log_expected, of_targets = rng.normal(size=K) - 1, rng.normal(size=N) - 1
    if options.get("logits") == "extreme":
        # multiples of 1/8, so that logits of 1e4 are exact in float32 too
        h, w = np.round(h), np.round(w * 8) / 8
        log_expected, of_targets = np.round(log_expected * 8) / 8, np.round(of_targets * 8) / 8
        b = np.where(np.arange(V) % 3, -1e4, 1e4)
    corrected = options.get("corrected", True)
    chosen = ("objective", "remove_hits", "temperature")
    return {
        "loss": _empty(N),
        "h": h,
        "w": w,
        "b": b if options.get("bias", True) else None,
        "targets": targets,
        "samples": samples,
        "counts": rng.integers(1, 9, K).astype(float) if options.get("counts") else None,
        "log_expected": log_expected if corrected else None,
        "target_log_expected": of_targets if corrected else None,
        **{name: options[name] for name in chosen if name in options},
    }


def gradients(case: Case, dtype: Any) -> Arguments:
    """Of `candidates_gradients`."""
    made = forward(case, dtype)
    N, H, K = (case.dims[k] for k in "NHK")
    weights = case.rng("weights").normal(size=N)
    weights[::4] = 0
    return {
        **made,
        "dh": _empty(N, H),
        "rows": np.full(N + K, -7, np.int32),
        "drows": _empty(N + K, H),
        "db": None if made["b"] is None else _empty(N + K),
        "weights": weights if case.options.get("weights") else None,
    }


def _empty(*shape: int) -> npt.NDArray[np.float64]:
    return np.full(shape, np.nan)
