"""Clusters of a vocabulary's tokens, from a text file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pynlm.text.files import PathLike, require_text

if TYPE_CHECKING:
    from pynlm.text.tokenizer import Tokenizer


def read_clusters(path: PathLike, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Each token's clusters, from lines ``TOKEN CLUSTER [CLUSTER ...]``, the coarsest first.

    Clusters have any names without spaces; all lines have equally many. Tokens that are not in the
    vocabulary are passed over. ``<eos>`` and ``<unk>`` get a cluster each where the file has none.

    Returns
    -------
    int32 [V, L], numbers of clusters by level, as ``pynlm.heads.trees.from_clusters`` takes them.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError
        No UTF-8, a line that does not fit, a token of the vocabulary that is missing or repeated.
    """
    path = require_text(path)
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    found: dict[int, list[str]] = {}
    depth = 0
    with open(path, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                token, *names = line.split() or [""]
                if not token:
                    continue
                depth = depth or len(names)
                if not names or len(names) != depth:
                    raise ValueError(
                        f"{path}: line {number}: expected a token and {depth or 'its'} "
                        f"cluster{'s' if depth != 1 else ''}, got {len(names)}"
                    )
                at = ids.get(token)
                if at in found:
                    raise ValueError(f"{path}: line {number}: {token!r} is given twice")
                if at is not None:
                    found[at] = names
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: no UTF-8: {error}") from None
    missing = [token for i, token in enumerate(tokenizer.tokens) if i not in found]
    special = {tokenizer.eos_id, tokenizer.unk_id}
    lost = [token for token in missing if ids[token] not in special]
    if lost:
        raise ValueError(
            f"{path}: {len(lost):,} of {len(ids):,} tokens have no cluster, {lost[0]!r} the first"
        )
    for token in missing:
        # no name in a file has a space
        found[ids[token]] = [f" {token}"] * depth
    columns = zip(*(found[i] for i in range(len(ids))), strict=True)
    numbers = [np.unique(np.array(names), return_inverse=True)[1] for names in columns]
    return np.stack(numbers, axis=1).astype(np.int32)
