"""One kernel = one basename in every folder: names the part that is missing."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pynlm import _kernels, kernels, reference

REPOSITORY = Path(__file__).parent.parent

# kernel -> (its family in csrc/, its binding)
KERNELS = {
    "lstm": ("recurrent", "recurrent"),
    "gru": ("recurrent", "recurrent"),
    "rnn": ("recurrent", "recurrent"),
    "xent": ("softmax", "softmax"),
    "candidates": ("softmax", "candidates"),
    "hsoftmax": ("softmax", "hsoftmax"),
    "linear": ("linear", "softmax"),
    "embedding": ("embedding", "small"),
    "dropout": ("dropout", "small"),
    "clip": ("optim", "small"),
    "sgd": ("optim", "small"),
    "adam": ("optim", "small"),
    "adagrad": ("optim", "small"),
}
# Kernels with equations that an accelerator shares keep them in NAME_math.h.
WITH_MATH = {"lstm", "gru", "rnn"}
# On a GPU these are products of cuBLAS and sums of common/columns.cu.
WITHOUT_CUDA = {"linear"}
SECTIONS = ("Math", "Shapes", "Aliasing", "Saved", "Numerics", "Threading")


def read(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


def table_entries() -> list[str]:
    """Kernel functions listed in csrc/isa/table.h, but those about the compiled backend itself."""
    listed = re.findall(r"\bX\((\w+), \w+\)", read("csrc/isa/table.h"))
    return [name for name in listed if name not in ("fma_peak", "pack_weights")]


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_has_all_its_parts(kernel: str) -> None:
    family, binding = KERNELS[kernel]
    parts = [
        f"csrc/{family}/{kernel}.h",
        f"csrc/{family}/{kernel}-inl.h",
        f"csrc/bind/{binding}.cpp",
        f"pynlm/cuda/{kernel}.py",
        f"pynlm/kernels/{kernel}.py",
        f"pynlm/reference/{kernel}.py",
        f"tests/kernels/test_{kernel}.py",
    ]
    if kernel not in WITHOUT_CUDA:
        parts.append(f"csrc/{family}/{kernel}.cu")
    if kernel in WITH_MATH:
        parts.append(f"csrc/{family}/{kernel}_math.h")
    missing = [part for part in parts if not (REPOSITORY / part).is_file()]
    assert not missing
    assert f'#include "{family}/{kernel}-inl.h"' in read("csrc/isa/kernels.cpp")


@pytest.mark.parametrize("kernel", KERNELS)
def test_contract_has_all_sections(kernel: str) -> None:
    header = read(f"csrc/{KERNELS[kernel][0]}/{kernel}.h")
    assert [name for name in SECTIONS if not re.search(rf"^// {name}\b", header, re.M)] == []


# What several kernels take, and no kernel itself.
SHARED = {"variant"}


def test_no_kernel_is_unlisted() -> None:
    """A contract, a public module or an oracle that KERNELS does not know."""
    families = {family for family, _ in KERNELS.values()}
    headers = [path for f in families for path in (REPOSITORY / "csrc" / f).glob("*.h")]
    contracts = {path.stem for path in headers if not path.stem.endswith(("-inl", "_math"))}
    contracts -= SHARED
    public = {path.stem for path in (REPOSITORY / "pynlm/kernels").glob("[!_]*.py")}
    oracles = {path.stem for path in (REPOSITORY / "pynlm/reference").glob("[!_]*.py")}
    assert contracts == set(KERNELS)
    assert public == {*KERNELS, *SHARED, "threads", "pack", "queued"}
    assert oracles == {*KERNELS, *SHARED, "philox"}


@pytest.mark.parametrize("function", table_entries())
def test_every_backend_has_the_function(function: str) -> None:
    """Compiled, oracle and public function exist, the last two with one signature."""
    assert callable(getattr(_kernels, function))
    oracle = inspect.signature(getattr(reference, function)).parameters
    public = inspect.signature(getattr(kernels, function)).parameters
    assert list(public) == [*oracle, "backend"]
    assert all(p.kind is p.KEYWORD_ONLY for p in public.values())
    assert [p.default for p in oracle.values()] == [p.default for p in public.values()][:-1]


def test_every_compiled_function_is_in_the_stub() -> None:
    stub = ast.parse(read("pynlm/_kernels.pyi"))
    stubbed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert stubbed == {name for name in dir(_kernels) if not name.startswith("_")}
    assert set(table_entries()) < stubbed


@pytest.mark.parametrize("kernel", [*KERNELS, *sorted(SHARED), "philox"])
def test_reference_imports_only_numpy(kernel: str) -> None:
    tree = ast.parse(read(f"pynlm/reference/{kernel}.py"))
    # what only a type checker imports
    for_types = [
        n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    tree.body = [node for node in tree.body if node not in for_types]
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("pynlm.reference" if node.level == 1 else str(node.module))
    own = {name for name in imported if name.startswith("pynlm.reference")}
    standard = {name for name in imported if name.split(".")[0] in sys.stdlib_module_names}
    assert imported - own - standard <= {"numpy", "numpy.typing"}


# A module may import from its own level and those before it.
LEVELS = [
    {"arrays"},
    {"kernels", "reference", "cuda", "xla"},
    {"layers", "heads"},
    {"models", "onnx", "torch", "jax"},
    {"text", "train", "evaluate", "recipes", "language_model"},
    {"cli"},
]


@pytest.mark.parametrize("level", range(len(LEVELS)), ids=lambda i: "+".join(sorted(LEVELS[i])))
def test_levels_import_downwards(level: int) -> None:
    above = set().union(*LEVELS[level + 1 :])
    wrong = []
    for name in LEVELS[level]:
        home = REPOSITORY / "pynlm" / name
        for path in [*home.rglob("*.py"), *home.parent.glob(f"{name}.py")]:
            for line in path.read_text(encoding="utf-8").splitlines():
                found = re.match(r"\s*(?:from|import) pynlm\.(\w+)", line)
                if found and found[1] in above:
                    wrong.append(f"{path.relative_to(REPOSITORY)}: {line.strip()}")
    assert wrong == []


def test_import_loads_numpy_and_kernels_only() -> None:
    """`import pynlm` and its kernels must not load the heavy dependencies."""
    heavy = ["typer", "rich", "pydantic", "tokenizers", "pooch", "matplotlib", "torch", "jax"]
    heavy += ["cupy", "pynlm.cuda"]
    code = f"import sys, pynlm, pynlm.kernels; print([m for m in {heavy!r} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    package = importlib.import_module("pynlm")
    assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize("pattern", ["*.h", "*.cpp", "*.cu", "*.cuh", "*.py", "*.pyx"])
def test_files_are_one_thing_each(pattern: str) -> None:
    """Under 500 lines; and no folder is called like an installed package."""
    folders = [REPOSITORY / name for name in ("csrc", "pynlm", "tests", "bench")]
    files = [path for folder in folders for path in folder.rglob(pattern)]
    long = [str(path) for path in files if len(path.read_bytes().splitlines()) > 500]
    assert long == []
    assert not any((REPOSITORY / "tests" / name).exists() for name in ("torch", "onnx", "jax"))
