"""The command line: ``pynlm train | eval | score | generate | export | info``.

Every user error is one line ``error: ...`` on stderr and exit code 2; Ctrl-C exits 130. Set
``PYNLM_TRACEBACK=1`` to see where an error came from.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from pynlm.language_model import LanguageModel

INTERRUPTED = 130
USER_ERROR = 2

app = typer.Typer(
    name="pynlm",
    help="Train, evaluate and use recurrent neural language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Device(str, Enum):
    """Where to compute."""

    cpu = "cpu"
    cuda = "cuda"


class Checkpoint(str, Enum):
    """Which state of a run."""

    best = "best"
    last = "last"


class Split(str, Enum):
    """A part of a named corpus."""

    train = "train"
    valid = "valid"
    test = "test"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is returned, or raised as SystemExit by typer."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:
        arguments = _spread(arguments, ("--text", "--set"))
    app(args=arguments, prog_name="pynlm")
    return 0


def _spread(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """``--text a b c`` as ``--text a --text b --text c``, so that a shell's ``*.txt`` works."""
    out: list[str] = []
    current: str | None = None
    waiting = False
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in options else None
            waiting = current is not None
        elif current is not None:
            if not waiting:
                out.append(current)
            waiting = False
        out.append(argument)
    return out


def _user_errors(command: _Command) -> _Command:
    """Turn what a user can cause into one clear line, and Ctrl-C into its exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (head, less) has gone: stop quietly, and keep the interpreter's own
            # flush at exit from complaining.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (*_USER_ERRORS, RuntimeError) as error:
            if not isinstance(error, _USER_ERRORS) and not _is_unavailable(error):
                raise
            if os.environ.get("PYNLM_TRACEBACK"):
                raise
            print(f"error: {_message(error)}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from None

    return run  # type: ignore[return-value]


_USER_ERRORS = (
    *(ValueError, IndexError, TypeError, ArithmeticError, OSError, ImportError, MemoryError),
)


def _is_unavailable(error: RuntimeError) -> bool:
    """Whether it says that there is no GPU to use."""
    from pynlm.cuda.device import DeviceUnavailable

    return isinstance(error, DeviceUnavailable)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return str(error) or type(error).__name__


_DEVICE = Annotated[Device, typer.Option(help="Where to compute; cuda is the current GPU.")]
_RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `pynlm train`.")]
_CHECKPOINT = Annotated[Checkpoint, typer.Option(help="Which checkpoint of the run to use.")]


@app.command()
@_user_errors
def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe by name, or a TOML file; default: `default`, or with --resume the run's.",
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="NAME", help="Named corpus; default: the recipe's.")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE...", help="Training text (UTF-8).")
    ] = None,
    valid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Validation text for --text.")
    ] = None,
    test: Annotated[Path | None, typer.Option(metavar="FILE", help="Test text for --text.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/RECIPE-SEED.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, masks, shuffles.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE...", help="Change the recipe: train.epochs=3."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder.")
    ] = False,
    device: _DEVICE = Device.cpu,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a model by a recipe."""
    from pynlm.train import run_training

    result = run_training(
        recipe,
        corpus=corpus,
        text=list(text) if text else None,
        valid=valid,
        test=test,
        out=out,
        seed=seed,
        overrides=tuple(overrides or ()),
        resume=resume,
        device=device.value,
        quiet=quiet,
    )
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command("eval")
@_user_errors
def evaluate(
    run: _RUN,
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text to score; - reads stdin.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="NAME", help="Named corpus to score.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which part of the corpus.")] = Split.test,
    carry: Annotated[
        bool | None,
        typer.Option(
            "--carry/--no-carry",
            help="One stream with carried state, or each line from a zero state; "
            "default: as the model was trained.",
        ),
    ] = None,
    stripes: Annotated[
        int, typer.Option(min=1, help="Read N pieces side by side: faster, approximate.")
    ] = 1,
    checkpoint: _CHECKPOINT = Checkpoint.best,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: _DEVICE = Device.cpu,
) -> None:
    """Perplexity of a text, with all counts.

    Every token is scored once. The report has the perplexity with and without <eos> in the
    denominator, with and without <unk> targets, and bits a token and a character.
    """
    if (text is None) == (corpus is None):
        raise ValueError("eval: give either --text FILE or --corpus NAME (with --split)")
    from pynlm.evaluate.report import to_json, to_text

    lm = _load(run, checkpoint, device)
    source: Any
    if text == "-":
        source, name = sys.stdin.buffer.read(), "stdin"
    elif text is not None:
        source, name = Path(text), text
    else:
        source, name = _corpus_file(corpus or "", split), f"{corpus} {split.value}"
    with _progress(quiet=as_json) as advance:
        result = lm.evaluate(source, carry=carry, stripes=stripes, progress=advance)
    if as_json:
        print(to_json(result, run=str(run), text=name))
    else:
        print(to_text(result, f"{run}, {checkpoint.value} checkpoint, on {name}"))


@app.command()
@_user_errors
def score(
    run: _RUN,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Text, a sentence a line; default: stdin.")
    ] = None,
    carry: Annotated[
        bool,
        typer.Option(
            "--carry/--no-carry",
            help="Read the lines as one stream, or each from a zero state.",
        ),
    ] = False,
    checkpoint: _CHECKPOINT = Checkpoint.best,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    device: _DEVICE = Device.cpu,
) -> None:
    """Log-probability of every token, as TSV.

    Columns: sentence (line of the input), index of the token in it, token, log2-probability,
    its running sum over the sentence. Lines are read as they come.
    """
    from pynlm.evaluate import read_lines
    from pynlm.evaluate.score import TSV_HEADER, to_dict, write_tsv

    piped = file is None or file == "-"
    name = "stdin" if piped else str(file)
    with nullcontext(sys.stdin.buffer) if piped else open(name, "rb") as source:
        lm = _load(run, checkpoint, device)
        scorer = lm.scorer(carry=carry)
        if not as_json:
            sys.stdout.write(TSV_HEADER)
        utf8 = lm.tokenizer.level != "byte"
        for lines in read_lines(source.fileno(), name, utf8=utf8):
            scores = scorer.score(lm.encode(lines, name=name, first=scorer.lines + 1))
            if as_json:
                for one in scores:
                    sys.stdout.write(json.dumps(to_dict(one), ensure_ascii=False) + "\n")
            else:
                write_tsv(scores, sys.stdout)
            sys.stdout.flush()


@app.command()
@_user_errors
def generate(
    run: _RUN,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[int, typer.Option(min=0, help="How many tokens to draw.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Below 1 safer, above 1 wilder; 0 is greedy.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw from the K most probable tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the smallest set with probability P.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    no_unk: Annotated[bool, typer.Option("--no-unk", help="Never draw <unk>.")] = False,
    checkpoint: _CHECKPOINT = Checkpoint.best,
    device: _DEVICE = Device.cpu,
) -> None:
    """Sample text, printed as it is drawn."""
    from pynlm.evaluate import Sampler

    lm = _load(run, checkpoint, device)
    unknown = lm.unknown(prompt)
    if unknown:
        print(f"note: not in the vocabulary, read as <unk>: {' '.join(unknown)}", file=sys.stderr)
    sampler = Sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        exclude=lm.sampler_exclusions(no_unk),
    )
    sys.stdout.write(prompt)
    end = prompt
    for piece in lm.stream(prompt, tokens, sampler):
        sys.stdout.write(piece)
        sys.stdout.flush()
        end = piece
    if not end.endswith("\n"):
        sys.stdout.write("\n")


@app.command()
@_user_errors
def export(
    run: _RUN,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to: the ONNX file.")],
    checkpoint: _CHECKPOINT = Checkpoint.best,
) -> None:
    """Write the model as an ONNX file (needs the extra pynlm[onnx]).

    Inputs: tokens, int64 [T, B] with T and B at least 1, and the state of each recurrent layer,
    zero at first. Outputs: log-probabilities [T, B, V] in nats of the token after each one, and
    the new states.
    """
    lm = _load(run, checkpoint, Device.cpu)
    path = lm.export_onnx(out)
    states = [f"{kind}.{layer.index}" for layer in lm.model.layers for kind in "hc"[: layer.states]]
    print(f"{path}: {path.stat().st_size:,} bytes")
    print(f"in:  tokens [T, B], {', '.join(states)}")
    after = ", ".join(state.replace(".", "_last.") for state in states)
    print(f"out: log_prob [T, B, {lm.model.config.vocab_size}], {after}")


@app.command()
@_user_errors
def info() -> None:
    """Versions, instruction set, threads, GPU."""
    import platform

    import numpy

    import pynlm
    from pynlm import _kernels

    levels = ", ".join(_kernels.available_isas())
    rows = [
        ("pynlm", pynlm.__version__),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("NumPy", numpy.__version__),
        ("instruction set", f"{_kernels.isa_name()} (available: {levels}; PYNLM_ISA chooses)"),
        ("threads", f"{pynlm.get_num_threads()} (PYNLM_NUM_THREADS chooses)"),
        *((package, _installed(package, extra)) for package, extra in _OPTIONAL.items()),
        ("pynlm.jax", _jax()),
        ("GPU", _gpu()),
        ("CUDA backend", _cuda()),
    ]
    for name, value in rows:
        print(f"{name:<16} {value}")


_OPTIONAL = {"matplotlib": "plot", "onnx": "onnx", "torch": "torch", "jax": "jax", "cupy": "cuda"}


def _jax() -> str:
    """How `pynlm.jax` calls the kernels, said without importing JAX; see its `calls_by`."""
    from importlib.util import find_spec

    from pynlm import _kernels
    from pynlm.xla import chosen_way

    if find_spec("jax") is None:
        return "JAX is not installed"
    try:
        way = chosen_way()
    except ValueError as error:
        return f"error: {error}"
    if way == "ffi":
        return "by XLA's foreign function interface (PYNLM_JAX chooses)"
    why = " (PYNLM_JAX chooses)" if _kernels.xla_handlers() else ": built without XLA's headers"
    return f"by a host callback{why}"


def _installed(package: str, extra: str) -> str:
    """The version of an optional package, read without importing it."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    try:
        # CuPy's distributions are called cupy-cuda12x and the like
        return version((packages_distributions().get(package) or [package])[0])
    except PackageNotFoundError:
        return f"not installed (pip install 'pynlm[{extra}]')" if extra else "not installed"


def _cuda() -> str:
    """Whether `--device cuda` can be used, and why not."""
    from pynlm.cuda.device import DeviceUnavailable, current

    try:
        device = current()
    except DeviceUnavailable as error:
        return f"not usable: {error}"
    free, total = (size / (1 << 30) for size in device.memory())
    return (
        f"usable (--device cuda): {device.processors} multiprocessors, "
        f"{free:.1f} GiB free of {total:.1f}"
    )


def _gpu() -> str:
    """Names of the NVIDIA GPUs that the driver's own tool lists."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found (no nvidia-smi)"
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "none usable (nvidia-smi fails)"
    return "; ".join(found.split("\n")).strip("; ") or "none found"


def _load(run: Path, checkpoint: Checkpoint, device: Device) -> LanguageModel:
    from pynlm.language_model import LanguageModel

    return LanguageModel.load(run, checkpoint.value, device.value)


def _corpus_file(name: str, split: Split) -> Path:
    from pynlm.text.corpus import load_corpus

    path = getattr(load_corpus(name), split.value)
    if path is None:
        raise ValueError(f"--split {split.value}: the corpus {name} has no {split.value} part")
    return Path(path)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A count of scored tokens on stderr while it is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("scoring · {task.completed:,.0f} tokens · {task.fields[rate]:,.0f} tokens/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, rate=0.0)

        def advance(count: int) -> None:
            progress.advance(task, count)
            state = progress.tasks[0]
            progress.update(task, rate=state.completed / max(state.elapsed or 0.0, 1e-9))

        yield advance


if __name__ == "__main__":
    sys.exit(main())
