"""What a run gives back, and the lines that it prints about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pynlm.evaluate import Evaluation
from pynlm.train.config import FigureConfig, Recipe


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run.

    Attributes
    ----------
    out : the run folder.
    recipe : all that was decided.
    valid, test : the best model on the whole text (one stream, or sentence by sentence); None
        before the first epoch ended, or where there is no test text.
    unigram_perplexity : of the test text (else the validation text) under the training counts.
    best_epoch : number of the epoch, from 1, whose model is the best; 0 for none.
    epochs, steps, tokens : done in all.
    seconds : spent in training steps, in all.
    tokens_per_second : of training steps.
    stopped : "finished", "early stop" or "interrupted".
    """

    out: Path
    recipe: Recipe
    valid: Evaluation | None
    test: Evaluation | None
    unigram_perplexity: float
    best_epoch: int
    epochs: int
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    stopped: str = field(default="finished")

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run, so that it can be resumed."""
        return self.stopped == "interrupted"

    @property
    def valid_perplexity(self) -> float | None:
        """Perplexity of the best model on the validation text."""
        return _perplexity(self.valid)

    @property
    def test_perplexity(self) -> float | None:
        """Perplexity of the best model on the test text."""
        return _perplexity(self.test)

    @property
    def figure(self) -> FigureConfig | None:
        """The published figure, if the run is the one that it is about."""
        return self.recipe.figure if self.recipe.figure_applies else None

    @property
    def gaps(self) -> dict[str, tuple[float, float]]:
        """split -> (ours, published), in the figure's metric, where there are both."""
        figure = self.figure
        found = {}
        for split in ("valid", "test"):
            evaluation: Evaluation | None = getattr(self, split)
            published = None if figure is None else getattr(figure, split)
            if figure is None or evaluation is None or evaluation.loss is not None:
                continue
            if published is not None:
                found[split] = (float(getattr(evaluation, figure.metric)), float(published))
        return found

    @property
    def gap(self) -> float | None:
        """Ours minus the published figure (test, else validation); negative is better."""
        for split in ("test", "valid"):
            if split in self.gaps:
                ours, published = self.gaps[split]
                return ours - published
        return None

    def lines(self) -> list[str]:
        """The report that ends a run."""
        out = []
        for split, evaluation in (("validation", self.valid), ("test", self.test)):
            if evaluation is not None:
                best = f"  (best epoch {self.best_epoch})" if split == "validation" else ""
                if evaluation.stripes > 1:
                    best += f"  ({evaluation.stripes} stripes)"
                if evaluation.loss is not None:
                    out.append(
                        f"{split} loss of {evaluation.loss} {evaluation.nats_per_token:.4f}, which "
                        f"has no perplexity  {evaluation.tokens:,} tokens{best}"
                    )
                    continue
                out.append(
                    f"{split} perplexity {evaluation.perplexity:.2f}  "
                    f"{evaluation.nats_per_token:.4f} nats  {evaluation.bits_per_token:.4f} bits "
                    f"a token  {evaluation.tokens:,} tokens{best}"
                )
                if evaluation.log_z_mean is not None:
                    out.append(
                        f"{split} log Z: mean {evaluation.log_z_mean:.4f}, variance "
                        f"{evaluation.log_z_variance:.4f}"
                    )
        where = "test" if self.test is not None else "validation"
        out.append(f"unigram perplexity of the same {where} text {self.unigram_perplexity:.2f}")
        figure = self.figure
        for split, (ours, published) in self.gaps.items():
            difference = ours - published
            out.append(
                f"{figure.kind if figure else ''} {split} "
                f"{figure.metric.replace('_', ' ') if figure else ''} "
                f"{published:g}: gap {difference:+.2f} ({100.0 * difference / published:+.1f} %)"
            )
        if figure is not None and self.gaps:
            out.append(f"  source: {figure.source}")
        return out


def _perplexity(evaluation: Evaluation | None) -> float | None:
    """None where there is none, or no evaluation."""
    return None if evaluation is None or evaluation.loss is not None else evaluation.perplexity
