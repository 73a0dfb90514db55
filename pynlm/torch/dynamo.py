"""torch.compile refuses subclasses of torch.nn.LSTM, GRU and RNN, unless a setting allows them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_CONFIG = "torch._dynamo.config"


def allow_recurrent() -> None:
    """Set torch._dynamo.config.allow_rnn, now or (the compiler takes a second to load) then."""
    if _CONFIG in sys.modules:
        _allow(sys.modules[_CONFIG])
    else:
        sys.meta_path.insert(0, _WhenLoaded())


def _allow(config: ModuleType) -> None:
    if hasattr(config, "allow_rnn"):  # once it is gone, nothing is refused
        config.allow_rnn = True  # type: ignore[attr-defined]


class _WhenLoaded(MetaPathFinder):
    """Finds the settings as they would be found, and changes one once they are there."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_set(module: ModuleType) -> None:
                execute(module)
                _allow(module)

            spec.loader.exec_module = execute_and_set  # type: ignore[method-assign]
        return spec
