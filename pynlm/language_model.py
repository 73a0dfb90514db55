"""A trained language model with its vocabulary: score, evaluate, sample, step."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, overload

import numpy as np
from numpy.typing import NDArray

from pynlm.arrays import to_host
from pynlm.evaluate import (
    CHUNK,
    Detokeniser,
    Evaluation,
    Sampler,
    Scorer,
    SentenceScore,
    TextCounts,
    count_file,
    count_text,
    evaluate_sentences,
    evaluate_stream,
    generate_ids,
    read_lines,
    split_lines,
    start_of,
)
from pynlm.evaluate.facts import ends_sentences
from pynlm.evaluate.perplexity import Progress
from pynlm.evaluate.state import LMState, frozen
from pynlm.layers.context import Context

if TYPE_CHECKING:
    from pynlm.models import RecurrentLM
    from pynlm.text import Tokenizer

Text = Union[str, bytes, Path, Sequence[int], "NDArray[np.integer[Any]]"]
"""Running text (str, or bytes in UTF-8), a text file (Path), or token ids."""


class LanguageModel:
    """A model, its vocabulary and the way it was trained.

    Parameters
    ----------
    model : ``pynlm.models.RecurrentLM``.
    tokenizer : ``pynlm.text`` tokenizer.
    batching : ``"contiguous"`` (state carried through a text) or ``"sentences"`` (each line on its
        own); what :meth:`evaluate` does unless told.
    backend : ``"cpu"``, or ``"reference"`` for the NumPy oracle.

    Examples
    --------
    >>> from pynlm.models import RecurrentLM, RecurrentLMConfig
    >>> from pynlm.text import Tokenizer
    >>> tokenizer = Tokenizer(["the", "<eos>", "cat", "<unk>"], [3, 2, 1, 0], "word")
    >>> model = RecurrentLM(RecurrentLMConfig(vocab_size=4, embedding_size=8, hidden_sizes=(8,)))
    >>> lm = LanguageModel(model, tokenizer)  # with weights of zero: all tokens equally likely
    >>> round(lm.perplexity("the cat"), 6)
    4.0
    >>> logp, state = lm.step("the", lm.start())
    >>> logp.shape
    (4,)
    """

    def __init__(
        self,
        model: RecurrentLM,
        tokenizer: Tokenizer,
        *,
        batching: str = "contiguous",
        backend: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batching = batching
        self.backend = backend
        self.start_id, self.start_token = start_of(tokenizer)
        self._context = Context(train=False, backend=backend)

    # ---- making one

    @classmethod
    def load(cls, directory: str | Path, which: str = "best", device: str = "cpu") -> LanguageModel:
        """The model of a run folder: its ``best`` checkpoint, or its ``last``.

        ``device`` is ``"cpu"`` or ``"cuda"``, wherever it was trained. Figures and
        log-probabilities come as NumPy arrays in any case, states are where the model is.

        Its weights are read-only and packed when first needed, because a model that is loaded
        scores; ``.model.parameters.unpack()`` lets them change.

        Raises
        ------
        FileNotFoundError : the folder, its config, vocabulary or checkpoint is missing.
        ValueError : a file in it is damaged or belongs to another run.
        RuntimeError : ``"cuda"`` where there is no GPU or no CuPy. MemoryError : not enough there.
        """
        from pynlm.train.checkpoint import load_model

        model, tokenizer, recipe = load_model(Path(directory), which, device)
        model.parameters.pack()
        return cls(model, tokenizer, batching=recipe.data.batching)

    def to(self, device: str) -> LanguageModel:
        """This model on ``"cpu"`` or ``"cuda"``: itself if it is there, else a copy; see `load`."""
        if device == self.model.device:
            return self
        model = self.model.to(device)
        model.parameters.pack()
        return LanguageModel(model, self.tokenizer, batching=self.batching, backend=self.backend)

    @classmethod
    def train(
        cls,
        recipe: str | Path | None = None,
        *,
        corpus: str | None = None,
        text: Any = None,
        valid: Any = None,
        test: Any = None,
        out: str | Path | None = None,
        seed: int | None = None,
        overrides: Iterable[str] = (),
        resume: bool = False,
        device: str = "cpu",
        quiet: bool = False,
    ) -> LanguageModel:
        """Train by a recipe and give the best model of the run; see ``pynlm.train.run_training``.

        ``LanguageModel.train(text="book.txt", overrides=["train.epochs=3"])``
        """
        from pynlm.train import run_training

        result = run_training(
            recipe,
            corpus=corpus,
            text=text,
            valid=valid,
            test=test,
            out=out,
            seed=seed,
            overrides=overrides,
            resume=resume,
            device=device,
            quiet=quiet,
        )
        return cls.load(result.out, device=device)

    def export_onnx(self, path: str | Path) -> Path:
        """Write the model as an ONNX file with explicit states; see ``pynlm.onnx.lm_to_onnx``.

        The file holds no vocabulary; its metadata names the one that belongs to it by its hash, and
        the token that a text starts with. It is put in place by one rename.

        Parameters
        ----------
        path : where to; what stands there is replaced, folders are made.

        Returns
        -------
        ``path``.

        Raises
        ------
        ImportError : the package onnx is missing (extra ``onnx``).
        ValueError : more than 2 GiB of weights. OSError : the disk refused.
        """
        import pynlm
        from pynlm.onnx import lm_to_onnx
        from pynlm.text.files import write_aside

        facts = {
            "pynlm_version": pynlm.__version__,
            "tokenizer_sha256": self.tokenizer.digest(),
            "tokenizer_level": self.tokenizer.level,
            "start_id": str(self.start_id),
            "start_token": self.start_token,
            "batching": self.batching,
        }
        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
        data = lm_to_onnx(self.model, facts).SerializeToString()
        with write_aside(path) as file:
            file.write(data)
        return path

    # ---- text in, figures out

    def evaluate(
        self,
        text: Text,
        *,
        carry: bool | None = None,
        stripes: int = 1,
        chunk: int = CHUNK,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Perplexity of ``text`` with every count (see ``pynlm.evaluate.Evaluation``).

        ``carry`` reads the text as one stream (True) or each line from a zero state (False);
        None does as the model was trained. ``stripes`` > 1 is faster and labelled in the result.
        """
        carry = self.batching != "sentences" if carry is None else carry
        ids, counts = self._encode_counted(text)
        facts: dict[str, Any] = {
            "unk_id": self.tokenizer.unk_id,
            "words": counts.words if counts else None,
            "characters": counts.characters if counts else None,
            "start_token": self.start_token,
            "chunk": chunk,
            "backend": self.backend,
            "progress": progress,
        }
        eos = self.tokenizer.eos_id
        if carry:
            return evaluate_stream(
                self.model, ids, self.start_id, stripes=stripes, eos_id=eos, **facts
            )
        if stripes != 1:
            raise ValueError(
                "evaluate: stripes are pieces of one stream; with the state reset at every "
                "sentence there is no stream (leave stripes at 1)"
            )
        end = self.start_id if eos is None else eos
        if eos is None and not ends_sentences(self.tokenizer):
            raise ValueError(
                "evaluate: without <eos> or a newline in the vocabulary nothing ends a sentence; "
                "leave carry=True (--carry)"
            )
        return evaluate_sentences(
            self.model, ids, self.start_id, end, count_eos=eos is not None, **facts
        )

    def perplexity(self, text: Text, *, carry: bool | None = None, stripes: int = 1) -> float:
        """``exp`` of the mean negative log-likelihood of ``text``, over all its tokens."""
        return self.evaluate(text, carry=carry, stripes=stripes).perplexity

    def score(
        self, text: Text | Sequence[str] | Sequence[Sequence[int]], *, carry: bool = False
    ) -> list[SentenceScore]:
        """Log-probability in bits of every token, line by line.

        Each line (of a str, of a file, of a list of str, or each of several id sequences) starts
        from a zero state; ``carry=True`` reads them as one stream.
        """
        scorer = self.scorer(carry=carry)
        if isinstance(text, Path):
            scores: list[SentenceScore] = []
            with text.open("rb") as file:
                utf8 = self.tokenizer.level != "byte"
                for lines in read_lines(file.fileno(), str(text), utf8=utf8):
                    ids = self.encode(lines, name=str(text), first=scorer.lines + 1)
                    scores += scorer.score(ids)
            return scores
        if isinstance(text, bytes):
            return scorer.score(self.encode(io.BytesIO(text)))
        if isinstance(text, str):
            return scorer.score(self.encode(split_lines(text)))
        items: list[Any] = list(text)
        if items and isinstance(items[0], str):
            return scorer.score(self.encode(items))
        rows = items if items and np.ndim(items[0]) else [items]
        return scorer.score([self.tokenizer.encode(row) for row in rows])

    def scorer(self, *, carry: bool = False, chunk: int = CHUNK) -> Scorer:
        """A ``Scorer`` of encoded lines for input that arrives piece by piece."""
        return Scorer(
            self.model,
            self.tokenizer,
            self.start_id,
            carry=carry,
            chunk=chunk,
            backend=self.backend,
        )

    # ---- sampling

    @overload
    def generate(
        self,
        prompt: str = ...,
        tokens: int = ...,
        *,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        seed: int = ...,
        exclude_unk: bool = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[int] | NDArray[np.integer[Any]],
        tokens: int = ...,
        *,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        seed: int = ...,
        exclude_unk: bool = ...,
    ) -> NDArray[np.int32]: ...

    def generate(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer[Any]] = "",
        tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        exclude_unk: bool = False,
    ) -> str | NDArray[np.int32]:
        """``prompt`` and a sample of ``tokens`` tokens that continues it.

        Parameters
        ----------
        prompt : text, or token ids.
        temperature, top_k, top_p, seed : see ``pynlm.evaluate.Sampler``; temperature 0 is greedy.
        exclude_unk : never draw ``<unk>``.

        Returns
        -------
        str, or int32 ``[n]`` for a prompt of ids.
        """
        sampler = Sampler(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            exclude=self.sampler_exclusions(exclude_unk),
        )
        if isinstance(prompt, str):
            return prompt + "".join(self.stream(prompt, tokens, sampler))
        ids = self.tokenizer.encode(prompt)
        start = self._after_start(ids)
        new = generate_ids(self.model, start, sampler, tokens, backend=self.backend)
        return np.concatenate([ids, np.fromiter(new, np.int32)])

    def stream(self, prompt: str, tokens: int, sampler: Sampler) -> Iterator[str]:
        """The continuation of ``prompt`` as pieces of text, each as soon as it is drawn."""
        ids = self.tokenizer.encode(prompt) if prompt else np.zeros(0, np.int32)
        eos = self.tokenizer.eos_id
        if eos is not None and len(ids) and ids[-1] == eos and not prompt.endswith("\n"):
            ids = ids[:-1]  # the prompt's line goes on
        words = Detokeniser(self.tokenizer, after=prompt)
        start = self._after_start(ids)
        new = generate_ids(self.model, start, sampler, tokens, backend=self.backend)
        for token in new:
            piece = words.push(token)
            if piece:
                yield piece
        rest = words.finish()
        if rest:
            yield rest

    def unknown(self, text: str) -> list[str]:
        """The words (at character level: characters) of ``text`` that read as ``<unk>``."""
        unk = self.tokenizer.unk_id
        if unk is None:
            return []
        parts = list(text) if self.tokenizer.level == "char" else text.split()
        return [part for part in dict.fromkeys(parts) if unk in self.tokenizer.encode(part)]

    def sampler_exclusions(self, exclude_unk: bool) -> tuple[int, ...]:
        """Ids that a sampler leaves out."""
        unk = self.tokenizer.unk_id
        return (int(unk),) if exclude_unk and unk is not None else ()

    # ---- one step at a time

    def start(self, batch: int = 1) -> LMState:
        """``batch`` histories that have read the start token only.

        :meth:`log_prob` of it is the distribution of the first token.
        """
        if batch < 1:
            raise ValueError(f"start: batch must be at least 1, got {batch}")
        ids = np.full((1, batch), self.start_id, np.int32)
        return self._advance(ids, self.model.initial_state(batch))

    def step(
        self, tokens: int | str | Sequence[int] | Sequence[str] | NDArray[Any], state: LMState
    ) -> tuple[NDArray[np.floating[Any]], LMState]:
        """Read one token a history; give the distribution of the next one.

        Parameters
        ----------
        tokens : an id or a token's text, or B of them. A state of one history branches into B.
        state : from :meth:`start` or an earlier step; it is not changed.

        Returns
        -------
        logp : natural log-probabilities ``[V]`` of the next token, ``[B, V]`` for B tokens.
        state : the histories with ``tokens`` read.

        Raises
        ------
        ValueError : a number of tokens other than the state's batch. IndexError : id >= V.
        """
        single = isinstance(tokens, str) or np.ndim(tokens) == 0
        items: list[Any] = [tokens] if single else list(tokens)  # type: ignore[arg-type]
        ids = self.tokenizer.encode([self._token_id(item) for item in items])
        if state.batch == 1 and len(ids) > 1:
            state = state[np.zeros(len(ids), np.intp)]
        if len(ids) != state.batch:
            raise ValueError(
                f"step: tokens must be one a history [{state.batch}], got [{len(ids)}]"
            )
        new = self._advance(ids.reshape(1, -1), state.layers)
        logp = self.log_prob(new)
        return (logp[0] if single else logp), new

    def log_prob(self, state: LMState) -> NDArray[np.floating[Any]]:
        """Natural log-probabilities ``[B, V]`` of the next token of each history."""
        return to_host(self.model.log_prob(state.hidden, self._context))

    # ---- helpers

    def encode(
        self, lines: Iterable[str | bytes], *, name: str = "text", first: int = 1
    ) -> list[NDArray[np.int32]]:
        """Ids of each line; ``name`` and the number of the ``first`` line stand in errors."""
        out = []
        for number, line in enumerate(lines, first):
            try:
                out.append(self.tokenizer.encode(line))
            except (ValueError, IndexError) as error:
                kind = IndexError if isinstance(error, IndexError) else ValueError
                place = str(error).removeprefix("text: line 1, ")
                raise kind(f"{name}: line {number}: {place}") from None
        return out

    def _advance(self, ids: NDArray[np.int32], layers: Any) -> LMState:
        hidden, layers = self.model.hidden(ids, layers, self._context)
        return LMState(
            tuple(tuple(frozen(part) for part in layer) for layer in layers),
            frozen(hidden[-1].copy()),
        )

    def _after_start(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.concatenate([np.array([self.start_id], np.int32), ids])

    def _token_id(self, token: Any) -> int:
        return int(self.tokenizer.id(token)) if isinstance(token, str) else int(token)

    def _encode_counted(self, text: Text) -> tuple[NDArray[np.int32], TextCounts | None]:
        level = self.tokenizer.level
        if isinstance(text, Path):
            ids = self.tokenizer.encode_file(text)
            return ids, None if level == "integer" else count_file(text, level)
        ids = self.tokenizer.encode(text)
        if level == "integer" or not isinstance(text, (str, bytes)):
            return ids, None
        return ids, count_text(text, level)
