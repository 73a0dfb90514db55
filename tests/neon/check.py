"""Check kernels that run elsewhere against the oracle, on the whole catalogue of cases.

`python tests/neon/check.py COMMAND...` starts COMMAND, the program of server.cpp (in an emulator of
another CPU), sends it every case of every kernel, and compares what comes back as the tests do with
the kernels of this machine.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from pynlm.testing import checks
from pynlm.testing.arguments import FUNCTIONS, Arguments


class Server:
    """The running program of server.cpp."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.isa = self.output.readline().decode().strip()

    def run(self, function: str, given: Arguments, backend: str) -> dict[str, Any]:
        """What `pynlm.testing.checks.run` does, in the other process."""
        given = {k: np.ascontiguousarray(v) if is_array(v) else v for k, v in given.items()}
        message = [f"{function} {len(given)}\n".encode()]
        for name, value in given.items():
            message += encoded(name, value)
        self.input.write(b"".join(message))
        self.input.flush()
        written = {}
        for name, value in given.items():
            if is_array(value):
                data = self.output.read(value.nbytes)
                written[name] = np.frombuffer(data, value.dtype).reshape(value.shape)
        answer = self.output.readline()
        if not answer:
            raise SystemExit(f"{function}: the server ended with code {self.process.wait()}")
        result = {name: written[name] for name in FUNCTIONS[function].writes if name in written}
        number = float(answer)
        counts = ("embedding_backward", "hsoftmax_gradients", "candidates_gradients")
        returns = {"sum_squares": number, **dict.fromkeys(counts, int(number))}
        return {**result, "return": returns.get(function)}


def encoded(name: str, value: Any) -> list[bytes]:
    """An argument, or an attribute of one, as server.cpp reads it."""
    if is_array(value):
        sizes = " ".join(map(str, (value.ndim, *value.shape)))
        return [f"{name} {value.dtype} {sizes}\n".encode(), value.tobytes()]
    if is_dataclass(value):
        attributes = [(field.name, getattr(value, field.name)) for field in fields(value)]
        parts = [part for attribute in attributes for part in encoded(*attribute)]
        return [f"{name} object {len(attributes)}\n".encode(), *parts]
    if value is None:
        return [f"{name} none\n".encode()]
    if isinstance(value, str):
        return [f"{name} text {value}\n".encode()]
    return [f"{name} number {float(value)!r}\n".encode()]


def is_array(value: Any) -> bool:
    """Whether the argument travels as raw bytes."""
    return isinstance(value, np.ndarray)


def main(command: list[str]) -> None:
    """Check every case; exit with 1 if one fails."""
    server = Server(command)
    checks.run = server.run
    checks.isa = lambda backend: server.isa
    failures = total = 0
    for function, about in FUNCTIONS.items():
        for case in about.cases:
            for dtype in (np.float32, np.float64):
                total += 1
                try:
                    checks.check_against_reference(function, case, dtype)
                except AssertionError as error:
                    failures += 1
                    print(f"FAILED on {server.isa}: {error}")
    print(f"{server.isa}: {total} cases of {len(FUNCTIONS)} kernel functions, {failures} failures")
    sys.exit(min(failures, 1))


if __name__ == "__main__":
    main(sys.argv[1:])
