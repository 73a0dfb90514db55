"""The `tokenizers` object behind a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors


def build(tokens: Sequence[str], level: str, eos: str | None, unk: str | None) -> Tokenizer:
    """A WordLevel model over the level's segmentation, with `eos` after every text (a line).

    Parameters
    ----------
    tokens : sequence of str
        In the order of their ids.
    level : str
        ``word``, ``char``, ``byte`` or ``integer``.
    eos, unk : str or None
        Tokens of `tokens`.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # The library raises at an unknown word if it finds no token of the given name: no token is "".
    result = Tokenizer(models.WordLevel(vocabulary, unk_token=unk if unk is not None else ""))
    each = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if level == "char":
        result.pre_tokenizer = each
        result.decoder = decoders.Fuse()
    elif level == "byte":
        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        result.pre_tokenizer = pre_tokenizers.Sequence([in_bytes, each])
        result.decoder = decoders.ByteLevel()
    else:
        result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if eos is not None:
        result.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, vocabulary[eos])]
        )
    return result
