"""From a recipe's `[data]` to vocabulary, token ids on disk, and batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pynlm.text import (
    ContiguousBatches,
    SentenceBatches,
    Tokenizer,
    TokenStore,
    as_ids,
    check_ids,
    load_corpus,
)
from pynlm.train.config import DataConfig, Recipe

IntArray = NDArray[np.int32]
Source = str | Path | Sequence[str | Path] | Sequence[int] | NDArray[Any]
"""A text file, several of them, or one sequence of token ids."""

SPLITS = ("train", "valid", "test")
HELD_OUT = 20
"""Without a validation text, one token in so many (the last ones) is held out."""

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Data:
    """What a run trains and measures on.

    Attributes
    ----------
    tokenizer : the vocabulary, made from the training text.
    train, valid, test : int32 [n], memory-mapped; test is None where there is none.
    digests : split -> {"tokens", "sha256"} of its ids; a resumed run must have the same.
    notes : what a person should know, a line each.
    """

    tokenizer: Tokenizer
    train: IntArray
    valid: IntArray
    test: IntArray | None
    digests: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


def arrays_of(sources: Mapping[str, Source | None]) -> dict[str, IntArray]:
    """Those sources that are token ids rather than files, as int32 [n]."""
    return {
        split: as_ids(source, f"train: {split}")
        for split, source in sources.items()
        if source is not None and not _names_files(source)
    }


def files_of(source: Source) -> tuple[str, ...]:
    """Absolute paths of a source of files, so that a run continues from any folder."""
    if isinstance(source, (str, Path)):
        return (str(Path(source).absolute()),)
    return tuple(str(Path(cast("str", item)).absolute()) for item in source)


def prepare(
    config: DataConfig,
    folder: Path,
    *,
    arrays: Mapping[str, IntArray] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Data:
    """Vocabulary and token ids of a run.

    Parameters
    ----------
    config : a recipe's `[data]`.
    folder : where the ids are kept (`train.npy` and so on), encoded once.
    arrays : token ids given instead of files.
    tokenizer : the vocabulary of the run that continues; None makes one from the training text.

    Raises
    ------
    FileNotFoundError, ValueError, IndexError : what `pynlm.text` says of a text it cannot use.
    """
    notes: list[str] = []
    if arrays:
        stores, tokenizer = _from_arrays(config, folder, arrays, tokenizer)
    elif tokenizer is not None and not config.text and config.corpus is None:
        # A run begun from token ids goes on with its own copy of them.
        kept = [split for split in SPLITS if (folder / f"{split}.npy").is_file()]
        stores = {split: TokenStore(folder / f"{split}.npy") for split in kept}
        if "train" not in stores:
            raise FileNotFoundError(f"{folder / 'train.npy'}: the run's token ids are missing")
    else:
        files = _files(config, notes)
        if tokenizer is None:
            tokenizer = Tokenizer.train(
                files["train"],
                config.level,
                min_count=config.min_count,
                max_size=config.max_size,
            )
        stores = {
            split: TokenStore.build(folder / f"{split}.npy", tokenizer, paths)
            for split, paths in files.items()
        }
    train = stores["train"].ids
    if "valid" in stores:
        valid = stores["valid"].ids
    else:
        cut = _cut(train, tokenizer.eos_id)
        train, valid = train[:cut], train[cut:]
        notes.append(f"no validation text: the last {len(valid):,} tokens of the text are held out")
    test = stores["test"].ids if "test" in stores else None
    ids = {"train": train, "valid": valid, **({} if test is None else {"test": test})}
    digests = {
        split: {"tokens": len(part), "sha256": ids_digest(part)} for split, part in ids.items()
    }
    return Data(tokenizer, train, valid, test, digests, tuple(notes))


def make_batches(recipe: Recipe, data: Data, epoch: int) -> ContiguousBatches | SentenceBatches:
    """The batches of one epoch, addressed by position."""
    train = recipe.train
    if recipe.data.batching == "sentences":
        eos = data.tokenizer.eos_id
        if eos is None:
            raise ValueError(
                f"data.batching = 'sentences' needs a vocabulary with <eos>, and level "
                f"{recipe.data.level!r} has none; use 'contiguous'"
            )
        return SentenceBatches(
            data.train,
            eos,
            train.batch_size,
            train.seed,
            epoch,
            max_length=recipe.data.max_length,
        )
    return ContiguousBatches(data.train, train.batch_size, train.bptt)


def ids_digest(ids: IntArray) -> str:
    """SHA-256 of token ids, read piece by piece."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), _BLOCK):
        digest.update(np.ascontiguousarray(ids[start : start + _BLOCK]).astype("<i4").data)
    return digest.hexdigest()


def unigram_perplexity(counts: NDArray[np.int64], ids: IntArray) -> float:
    """Perplexity of `ids` under the training counts, add-one smoothed: what no context gives.

    Parameters
    ----------
    counts : [V], of the vocabulary.
    ids : int32 [n], not empty.

    Examples
    --------
    >>> round(unigram_perplexity(np.array([7, 7]), np.array([0, 1, 1], np.int32)), 12)
    2.0
    """
    seen = np.zeros(len(counts), np.int64)
    for start in range(0, len(ids), _BLOCK):
        seen += np.bincount(ids[start : start + _BLOCK], minlength=len(counts))
    log_prob = np.log(counts + 1.0) - math.log(float(counts.sum()) + len(counts))
    return math.exp(-float(seen @ log_prob) / len(ids))


def _names_files(source: Source) -> bool:
    if isinstance(source, (str, Path)):
        return True
    if isinstance(source, np.ndarray):
        return False
    return len(source) > 0 and all(isinstance(item, (str, Path)) for item in source)


def _files(config: DataConfig, notes: list[str]) -> dict[str, tuple[Path, ...]]:
    if config.text:
        files: dict[str, tuple[Path, ...]] = {"train": tuple(map(Path, config.text))}
        if config.valid:
            files["valid"] = (Path(config.valid),)
        if config.test:
            files["test"] = (Path(config.test),)
        return files
    if config.corpus is None:
        raise ValueError("train: no text to train on; give a corpus by name, or text files")
    corpus = load_corpus(config.corpus)
    notes.append(f"corpus {corpus.name}: {corpus.description}")
    notes.append(f"SHA-256 of its training text: {corpus.sha256['train']}")
    found: dict[str, tuple[Path, ...]] = {"train": (corpus.train,), "valid": (corpus.valid,)}
    if corpus.test is not None:
        found["test"] = (corpus.test,)
    return found


def _from_arrays(
    config: DataConfig,
    folder: Path,
    arrays: Mapping[str, IntArray],
    tokenizer: Tokenizer | None,
) -> tuple[dict[str, TokenStore], Tokenizer]:
    if "train" not in arrays:
        raise ValueError("train: token ids to train on are missing (text)")
    if tokenizer is None:
        # A later split may hold ids that the training part lacks; they belong to the vocabulary.
        largest = max(int(ids.max(initial=0)) for ids in arrays.values())
        size = largest + 1 if config.max_size is None else config.max_size
        tokenizer = Tokenizer.from_ids(arrays["train"], vocab_size=size)
    for split, ids in arrays.items():
        check_ids(ids, tokenizer.vocab_size, f"train: {split}")
    stores = {
        split: TokenStore.write(folder / f"{split}.npy", [ids]) for split, ids in arrays.items()
    }
    return stores, tokenizer


def _cut(ids: IntArray, eos_id: int | None) -> int:
    """Where the held-out part begins: after an `<eos>` where one is near."""
    cut = len(ids) - len(ids) // HELD_OUT
    if eos_id is not None:
        after = np.flatnonzero(ids[cut:] == eos_id)
        if len(after) and cut + int(after[0]) + 1 < len(ids):
            cut += int(after[0]) + 1
    if cut >= len(ids):
        raise ValueError(
            f"train: {len(ids)} tokens are too few to hold a part out for validation; "
            "give a validation text"
        )
    return cut
