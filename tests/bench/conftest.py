"""`bench` is no installed package: tests import it from the repository."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# Peers that a machine need not have: their tests are not collected without them.
collect_ignore = [
    file
    for file, package in (
        ("test_with_onnxruntime.py", "onnxruntime"),
        ("test_with_jax.py", "jax"),
        ("test_jax_cells.py", "jax"),
        ("test_with_gensim.py", "gensim"),
    )
    if find_spec(package) is None
]
