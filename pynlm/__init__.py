"""pynlm: recurrent neural language models on compiled kernels.

Train a model on a text file, measure it, sample from it::

    import pynlm

    lm = pynlm.LanguageModel.train(text="book.txt", out="runs/book")
    print(lm.perplexity("It was the best of times"))
    print(lm.generate("It was", tokens=50))

Importing the package loads nothing; each public name loads its module when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pynlm.evaluate import Evaluation as Evaluation
    from pynlm.kernels import get_num_threads as get_num_threads
    from pynlm.kernels import set_num_threads as set_num_threads
    from pynlm.language_model import LanguageModel as LanguageModel
    from pynlm.language_model import LMState as LMState
    from pynlm.train import Trainer as Trainer
    from pynlm.train import run_training as run_training

    __version__: str

_HOMES = {
    "Evaluation": "pynlm.evaluate",
    "LMState": "pynlm.language_model",
    "LanguageModel": "pynlm.language_model",
    "Trainer": "pynlm.train",
    "get_num_threads": "pynlm.kernels",
    "run_training": "pynlm.train",
    "set_num_threads": "pynlm.kernels",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        globals()[name] = version("pynlm")
        return globals()[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'pynlm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
