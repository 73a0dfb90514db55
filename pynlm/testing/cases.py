"""The one catalogue of cases: for every kernel, the shapes and options that tests and checks run.

Each list has: all dimensions distinct primes (a swapped dimension cannot hide), one step, one row,
one unit, sizes around the vector and tile widths, empty batches, the options of the kernel, and one
case large enough that several threads share it ("threads").
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

Dims = Mapping[str, int]

DTYPES = ["float32", "float64"]
"""Names, because a test's id then says the dtype."""


VARIANT_OPTIONS = {
    *("mask_h", "peephole", "zoneout_h", "zoneout_c", "clip_c"),
    *("clip_h", "layer_norm", "norm_state", "coupled", "projection", "reset_before"),
}


XENT_OPTIONS = ("label_smoothing", "z_loss", "temperature")


@dataclass(frozen=True)
class Case:
    """One set of shapes and options of a kernel.

    Parameters
    ----------
    kernel
        Basename, for example "lstm".
    name
        Unique within the kernel.
    dims
        Size of every dimension symbol.
    options
        What else the argument maker of the kernel understands (`lengths`, `nonlinearity`, ...).
    """

    kernel: str
    name: str
    dims: Dims
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def is_pair(self) -> bool:
        """Whether it has two variants at once; CI runs these at one level only."""
        return "+" in self.name

    @property
    def terms(self) -> int:
        """A bound on the length of the longest sum, which the tolerance grows with."""
        if self.kernel in ("dropout", "sgd", "adam", "adagrad"):  # element by element
            return 1
        sizes = [max(size, 1) for size in self.dims.values()]
        steps = max(self.dims.get("T", 1), 1) * max(self.dims.get("B", 1), 1)
        return max(*sizes, steps, sum(self.dims.get(k, 0) for k in "IH"))

    @property
    def is_plain(self) -> bool:
        """Whether a recurrent case is of the plain cell, which torch has too."""
        return not VARIANT_OPTIONS & self.options.keys()

    @property
    def is_tiny(self) -> bool:
        """Small enough for a check of every single element by finite differences."""
        return math.prod(max(size, 1) for size in self.dims.values()) <= 500

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator for this case's numbers; the same in every run and for every dtype."""
        return np.random.default_rng(zlib.crc32(f"{self.kernel}/{self.name}/{purpose}".encode()))


def _recurrent(kernel: str, **options: Any) -> list[Case]:
    def case(name: str, T: int, B: int, I: int, H: int, **more: Any) -> Case:
        suffix = f"-{options['nonlinearity']}" if options else ""
        dims = {"T": T, "B": B, "I": I, "H": H}
        return Case(kernel, name + suffix, dims, {**options, **more})

    everything = {
        "mask_h": True,
        "zoneout_h": 0.4,
        "sample": True,
        "layer_norm": True,
        "clip_h": 0.6875,
    }
    variants: dict[str, dict[str, Any]] = {
        "zoneout": {"zoneout_h": 0.3, "sample": True},
        "zoneout-expected": {"zoneout_h": 0.3},
        "recurrent-dropout": {"mask_h": True},
        "layer-norm": {"layer_norm": True},
        "clip-h": {"clip_h": 0.3125},
    }
    if kernel == "lstm":
        everything |= {"zoneout_c": 0.2, "clip_c": 0.9, "peephole": True, "projection": 13}
        variants |= {
            "zoneout-c": {"zoneout_c": 0.3, "sample": True},
            "zoneout-c-expected": {"zoneout_c": 0.3},
            "peephole": {"peephole": True},
            "clip": {"clip_c": 0.4},
            "coupled": {"coupled": True},
            "projection": {"projection": 13},
            "norm-state": {"layer_norm": True, "norm_state": True},
        }
    if kernel == "gru":
        variants["reset-before"] = {"reset_before": True}
    if kernel == "rnn":
        del variants["zoneout-expected"]  # has no backward pass
    for one, two in combinations(tuple(variants), 2):
        # what samples and what does not are two modes, not a pair
        zoned = [variants[v] for v in (one, two) if v.startswith("zoneout")]
        modes = {v.get("sample", False) for v in zoned}
        pair = variants[one] | variants[two]
        if len(modes) < 2 and pair not in variants.values() and _defined(pair):
            variants[f"{one}+{two}"] = pair
    if kernel == "lstm":
        variants["everything-coupled"] = everything | {"coupled": True, "norm_state": True}
    if kernel == "gru":
        variants["everything-reset-before"] = {
            **{name: value for name, value in everything.items() if name != "layer_norm"},
            "reset_before": True,
        }
    variants["everything"] = everything
    return [
        *(case(f"{name}-primes", 5, 3, 7, 11, **more) for name, more in variants.items()),
        *(
            # of two units layer norm makes about -1 and 1: too sharp for finite differences
            case(
                f"{name}-tiny-ragged",
                *(3, 3, 2, 5 if more.get("layer_norm") else 2),
                lengths=[3, 1, 0],
                **more,
            )
            for name, more in variants.items()
        ),
        case("everything-many-rows", 3, 67, 5, 17, row_ids=True, **everything),
        case(
            "everything-ragged", 7, 6, 5, 13, lengths=[7, 7, 5, 3, 1, 0], row_ids=True, **everything
        ),
        case("everything-beyond-vector", 3, 13, 19, 37, **everything),
        case("everything-later", 5, 3, 7, 11, time0=123456789, **everything),
        case("everything-no-rows", 5, 0, 7, 11, **everything),
        case("everything-threads", 6, 20, 64, 130, **everything),
        *(
            case(f"{name}-threads", 5, 19, 31, 137, lengths=[5] * 9 + [2] * 9 + [1], **more)
            for name, more in variants.items()
            if name.startswith(("everything-", "layer-norm", "projection", "reset-before"))
            and "+" not in name
        ),
        *(
            case(f"{name}-threads-dots", 4, 3, 5, 257, **more)
            for name, more in variants.items()
            if name.startswith(("everything", "projection", "reset-before")) and "+" not in name
        ),
        case("primes", 5, 3, 7, 11),
        case("tiny", 2, 3, 2, 2),
        case("tiny-ragged", 3, 3, 2, 2, lengths=[3, 1, 0]),
        case("one-step", 1, 3, 7, 11),
        case("one-row", 5, 1, 7, 11),
        case("one-unit", 5, 3, 1, 1),
        case("vector-width", 4, 8, 16, 32),
        case("beyond-vector", 3, 13, 19, 37),
        case("many-rows", 3, 67, 5, 17),
        case("long", 101, 2, 3, 5),
        case("no-rows", 5, 0, 7, 11),
        case("no-steps", 0, 3, 7, 11),
        case("saturated", 5, 3, 7, 11, weight_scale=30.0),
        case("ragged", 7, 6, 5, 13, lengths=[7, 7, 5, 3, 1, 0]),
        case("ragged-below-full", 7, 5, 3, 17, lengths=[4, 4, 2, 2, 2]),
        case("ragged-many-rows", 5, 40, 3, 9, lengths=sorted([5, 4, 3, 2, 1] * 8, reverse=True)),
        case("ragged-neighbourless", 45, 2, 7, 11, lengths=[45, 1]),
        case("lengths-full", 5, 3, 7, 11, lengths=[5, 5, 5]),
        case("lengths-one", 5, 3, 7, 11, lengths=[1, 1, 1]),
        case("lengths-zero", 5, 3, 7, 11, lengths=[0, 0, 0]),
        # too few rows to be divided, and units enough for two members
        *(
            case(f"{name}-threads-by-units{suffix}", 6, 7, 5, 257, **_wider(more), **lengths)
            for name, more in {**variants, "plain": {}}.items()
            for suffix, lengths in {"": {}, "-ragged": {"lengths": [6, 6, 5, 3, 2, 1, 0]}}.items()
            if "+" not in name
        ),
        case("threads", 6, 20, 64, 128),
        *(case(f"threads-{B}-rows", 6, B, 31, 137) for B in (1, 2, 3, 4)),
        *(case(f"threads-{B}-rows-{T}-steps", T, B, 31, 137) for T, B in ((1, 1), (1, 4), (4, 3))),
        case("threads-ragged", 6, 24, 64, 130, lengths=[6] * 10 + [3] * 10 + [1] * 3 + [0]),
        # sums over more rows than a block's depth; weights wider than they are high
        case("threads-ragged-long", 60, 20, 19, 37, lengths=[*range(57, 0, -3), 0]),
        case("threads-ragged-wide", 25, 33, 150, 7, lengths=sorted([25, 24, 9] * 11)[::-1]),
    ]


def _wider(options: Mapping[str, Any]) -> dict[str, Any]:
    """With a projection that is work enough for two threads."""
    return {**options, **({"projection": 67} if "projection" in options else {})}


def _defined(options: Mapping[str, Any]) -> bool:
    """Whether a cell has these variants together."""
    # an expected zoneout hides what was clipped from the backward pass
    mixes = options.get("zoneout_h") and not options.get("sample")
    before = options.get("reset_before") and options.get("layer_norm")
    return not (before or (mixes and options.get("clip_h")))


def _linear() -> list[Case]:
    def case(name: str, N: int, I: int, O: int, **options: Any) -> Case:
        return Case("linear", name, {"N": N, "I": I, "O": O}, options)

    return [
        case("primes", 13, 7, 11),
        case("tiny", 3, 2, 5),
        case("no-bias", 13, 7, 11, bias=False),
        case("one-row", 1, 7, 11),
        case("one-input", 13, 1, 11),
        case("one-output", 13, 7, 1),
        case("no-rows", 0, 7, 11),
        case("vector-width", 16, 32, 64),
        case("beyond-tiles", 67, 129, 131),
        case("deep", 5, 1031, 3),
        case("threads", 300, 128, 260),
        # products beyond one chunk of the shared operand, and beyond one span of its depth
        case("threads-chunks-of-inputs", 40, 2049, 2060),
        case("threads-chunks-of-outputs", 40, 2060, 2049),
        case("threads-spans", 720, 520, 500),
    ]


def _xent() -> list[Case]:
    def case(name: str, N: int, H: int, V: int, **options: Any) -> Case:
        return Case("xent", name, {"N": N, "H": H, "V": V}, options)

    smoothed = {"label_smoothing": 0.1}
    everything = {**smoothed, "z_loss": 0.01, "temperature": 0.7, "weights": True}
    return [
        case("primes", 13, 7, 101),
        case("tiny", 3, 2, 5),
        case("tiny-weights", 3, 2, 5, weights=True),
        case("tiny-everything", 3, 2, 5, **everything),
        case("smoothed", 13, 7, 101, **smoothed),
        case("smoothed-to-one", 13, 7, 101, label_smoothing=1.0),
        case("z-loss", 13, 7, 101, z_loss=0.01),
        case("temperature", 13, 7, 101, temperature=0.7, k=101),
        case("everything", 13, 7, 101, **everything, k=70),
        case("one-word-everything", 13, 7, 1, **everything),
        case("no-rows-everything", 0, 7, 101, **everything),
        case("many-words-everything", 17, 19, 5003, **everything, k=200),
        # powers of two, so that the logits stay exact
        case("extreme-logits-smoothed", 13, 4, 101, logits="extreme", z_loss=2**-10, **smoothed),
        case("extreme-logits-hot", 13, 4, 101, logits="extreme", temperature=4.0),
        case("no-bias", 13, 7, 101, bias=False),
        case("weights", 13, 7, 101, weights=True),
        case("one-row", 1, 7, 101),
        case("one-word", 13, 7, 1),
        case("one-unit", 13, 1, 101),
        case("no-rows", 0, 7, 101),
        case("one-target", 13, 7, 101, targets="same"),
        case("extreme-logits", 13, 4, 101, logits="extreme"),
        case("equal-large-logits", 13, 4, 101, logits="large"),
        case("sharp", 13, 7, 101, weight_scale=20.0),
        case("many-words", 17, 19, 5003),
        case("many-rows", 301, 19, 67),
        case("many-units", 13, 211, 67),
        case("threads", 200, 64, 3001, weights=True),
        case("threads-everything", 200, 64, 3001, **everything),
        # logits in tiles of words, over blocks of rows
        case("threads-tiles", 601, 3, 4001, weights=True),
        case("threads-tiles-everything", 61, 2, 35_111, **everything, k=20),
    ]


def _candidates() -> list[Case]:
    def case(name: str, N: int, H: int, V: int, K: int, **options: Any) -> Case:
        return Case("candidates", name, {"N": N, "H": H, "V": V, "K": K}, options)

    forms: dict[str, dict[str, Any]] = {
        "softmax": {"objective": "softmax"},
        "logistic": {"objective": "logistic"},
    }
    everything = {"counts": True, "weights": True, "temperature": 0.7, "remove_hits": False}
    shapes: list[tuple[str, tuple[int, int, int, int], dict[str, Any]]] = [
        ("primes", (13, 7, 101, 29), {"counts": True, "weights": True}),
        ("tiny", (3, 2, 7, 4), {}),
        ("tiny-everything", (3, 2, 7, 4), everything),
        ("hits-kept", (13, 7, 31, 29), {"remove_hits": False}),
        ("hits-removed", (13, 7, 31, 29), {"counts": True}),
        ("plain", (13, 7, 101, 29), {"corrected": False}),
        ("no-bias", (13, 7, 101, 29), {"bias": False}),
        ("one-row", (1, 7, 101, 29), {}),
        ("one-sample", (13, 7, 101, 1), {}),
        ("one-unit", (13, 1, 101, 29), {}),
        ("one-word", (13, 7, 1, 1), {}),
        ("whole-vocabulary", (13, 7, 101, 101), {}),
        ("no-rows", (0, 7, 101, 29), {}),
        ("one-target", (13, 7, 101, 29), {"targets": "same"}),
        ("extreme-logits", (13, 4, 101, 29), {"logits": "extreme"}),
        ("sharp", (13, 7, 101, 29), {"weight_scale": 20.0}),
        ("many-samples", (17, 19, 6007, 5003), {"counts": True}),
        ("many-rows", (301, 19, 211, 67), everything),
        ("many-units", (13, 211, 67, 29), {}),
        ("threads", (230, 64, 4001, 1501), {"counts": True, "weights": True}),
        # more than one block of tokens
        ("threads-blocks", (300, 8, 30_011, 20_011), everything),
    ]
    both = [
        case(f"{name}-{form}", *sizes, **{**chosen, **options})
        for form, chosen in forms.items()
        for name, sizes, options in shapes
    ]
    # Functions are called with `primes` and its defaults.
    return [case("primes", 13, 7, 101, 29, counts=True, weights=True), *both]


def _hsoftmax() -> list[Case]:
    def case(name: str, N: int, H: int, V: int, tree: str = "huffman", **options: Any) -> Case:
        return Case("hsoftmax", name, {"N": N, "H": H, "V": V}, {"tree": tree, **options})

    sizes: list[tuple[str, int, int, int, dict[str, Any]]] = [
        ("plain", 13, 7, 101, {"weights": True}),
        ("tiny", 3, 2, 5, {}),
        ("many-words", 17, 19, 1009, {"k": 50}),
        ("many-rows", 301, 19, 67, {"bias": False}),
        ("threads", 230, 130, 509, {"weights": True}),
    ]
    forms = [
        case(f"{tree}-{name}", N, H, V, tree, **options)
        for tree in ("huffman", "ternary", "balanced", "classes", "clusters", "flat")
        for name, N, H, V, options in sizes
    ]
    return [
        case("primes", 13, 7, 101),
        case("no-bias", 13, 7, 101, bias=False),
        case("one-row", 1, 7, 101),
        case("one-word", 13, 7, 1),
        case("two-words", 13, 7, 2),
        case("one-unit", 13, 1, 101),
        case("no-rows", 0, 7, 101),
        case("no-rows-classes", 0, 7, 101, "classes"),
        case("one-target", 13, 7, 101, targets="same", k=101),
        case("one-target-flat", 13, 7, 101, "flat", targets="same"),
        case("chain", 29, 7, 61, "chain", k=61),
        case("extreme-logits", 13, 4, 101, logits="extreme"),
        case("extreme-logits-classes", 13, 4, 101, "classes", logits="extreme"),
        case("extreme-logits-flat", 13, 4, 101, "flat", logits="extreme"),
        case("sharp", 13, 7, 101, weight_scale=20.0),
        case("sharp-balanced", 13, 7, 101, "balanced", weight_scale=20.0),
        case("many-units", 13, 211, 67),
        case("vector-width", 16, 128, 64, "balanced"),
        *forms,
    ]


def _embedding() -> list[Case]:
    def case(name: str, N: int, V: int, D: int, **options: Any) -> Case:
        return Case("embedding", name, {"N": N, "V": V, "D": D}, options)

    return [
        case("primes", 13, 29, 7),
        case("tiny", 4, 3, 2),
        case("one-id", 1, 29, 7),
        case("one-word", 13, 1, 7),
        case("one-unit", 13, 29, 1),
        case("no-ids", 0, 29, 7),
        case("same-id", 13, 29, 7, ids="same"),
        case("vector-width", 16, 29, 32),
        case("threads", 700, 500, 200),
    ]


def _dropout() -> list[Case]:
    def case(name: str, T: int, B: int, D: int, p: float = 0.5, **options: Any) -> Case:
        return Case("dropout", name, {"T": T, "B": B, "D": D}, {"p": p, **options})

    return [
        case("primes", 5, 3, 7),
        case("tiny", 2, 3, 5),
        case("nothing-dropped", 5, 3, 7, p=0.0),
        case("almost-all-dropped", 5, 3, 7, p=0.999),
        case("p-third", 11, 7, 37, p=0.35),
        case("locked", 5, 3, 7, locked=True),
        case("later", 5, 3, 7, time0=123456789),
        case("largest-words", 2, 3, 19, seed=2**32 - 1, step=2**32 - 1, site=65535, layer=65535),
        case("one-step", 1, 3, 7),
        case("one-row", 5, 1, 7),
        case("one-unit", 5, 3, 1),
        case("no-steps", 0, 3, 7),
        case("no-rows", 5, 0, 7),
        case("vector-width", 3, 4, 64),
        case("threads", 35, 20, 650),
    ]


_FLAT_SIZES = {"one": 1, "primes": 13, "vector-width": 64, "none": 0, "threads": 100_003}
_TABLES = {
    "rows": (13, 5, [0, 3, 12]),
    "rows-wide": (7, 37, [2, 3]),
    "rows-all": (5, 3, [0, 1, 2, 3, 4]),
    "rows-none": (5, 3, []),
    "rows-one": (1, 1, [0]),
    "rows-threads": (1009, 101, list(range(0, 1009, 7))),
}


def _optimiser(kernel: str, variants: Mapping[str, Mapping[str, Any]]) -> list[Case]:
    cases = []
    for variant, options in variants.items():
        for name, size in _FLAT_SIZES.items():
            cases.append(Case(kernel, f"{name}-{variant}", {"P": size}, options))
        for name, (V, D, rows) in _TABLES.items():
            dims = {"V": V, "D": D, "R": len(rows)}
            cases.append(Case(kernel, f"{name}-{variant}", dims, {**options, "rows": rows}))
    return cases


def _clip() -> list[Case]:
    sizes = [0, 1, 13, 4095, 4096, 4097, 100_003]
    return [Case("clip", f"size-{size}", {"P": size}) for size in sizes]


CASES: dict[str, list[Case]] = {
    "lstm": _recurrent("lstm"),
    "gru": _recurrent("gru"),
    "rnn": _recurrent("rnn", nonlinearity="tanh") + _recurrent("rnn", nonlinearity="relu"),
    "linear": _linear(),
    "xent": _xent(),
    "candidates": _candidates(),
    "hsoftmax": _hsoftmax(),
    "embedding": _embedding(),
    "dropout": _dropout(),
    "sgd": _optimiser(
        "sgd",
        {
            "plain": {},
            "decay": {"weight_decay": 0.01},
            "momentum": {"momentum": 0.9},
            "momentum-decay": {"momentum": 0.9, "weight_decay": 0.01},
            "nesterov": {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
        },
    ),
    "adam": _optimiser(
        "adam",
        {
            "plain": {},
            "first": {"t": 1},
            "decay": {"weight_decay": 0.01},
            "decoupled": {"weight_decay": 0.01, "decoupled": True},
        },
    ),
    "adagrad": _optimiser("adagrad", {"plain": {}, "decay": {"weight_decay": 0.01}}),
    "clip": _clip(),
}


def find_case(kernel: str, name: str) -> Case:
    """Return the case of that name; KeyError if there is none."""
    for case in CASES[kernel]:
        if case.name == name:
            return case
    raise KeyError(f"{kernel} has no case {name!r}: {[case.name for case in CASES[kernel]]}")
