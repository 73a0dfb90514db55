"""A run from recipe to result: epochs, validation, checkpoints, interruption, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from traceback import clear_frames
from typing import Any

import pynlm
from pynlm.evaluate import Evaluation
from pynlm.layers.pool import pool_on
from pynlm.models import RecurrentLM
from pynlm.text import write_aside
from pynlm.train.bptt import BPTT, Measured, TrainingDiverged, all_finite
from pynlm.train.checkpoint import (
    CheckpointError,
    CheckpointMissing,
    RunLock,
    Snapshot,
    find_checkpoint,
    last_good,
    load_checkpoint,
    make_model,
    restore_links,
    save_checkpoint,
)
from pynlm.train.config import Recipe, to_mapping, to_toml
from pynlm.train.curve import draw_curve
from pynlm.train.data import IntArray, Source, make_batches, prepare, unigram_perplexity
from pynlm.train.heldout import evaluate_heldout
from pynlm.train.interrupt import Interruption
from pynlm.train.log import Reporter, RunLog, heading, perplexity_of, shown
from pynlm.train.optimisers import make_optimiser
from pynlm.train.position import Position, Progress
from pynlm.train.result import TrainResult
from pynlm.train.schedules import make_schedule
from pynlm.train.settings import (
    Overrides,
    check_data,
    check_unchanged,
    decide,
    given_tree,
    head_notes,
    model_config,
    stored_tokenizer,
    with_cutoffs,
)

CURVE_SECONDS = 20.0
"""The curve is drawn after an epoch, but not more often than this."""


class Trainer:
    """Trains a model by a recipe.

    Parameters
    ----------
    recipe : a name, a TOML file, a mapping or a Recipe; None is `default`, or with `resume` the
        run's own.
    corpus : a corpus by name instead of the recipe's.
    text, valid, test : text files (training: one or several) or token ids instead of a corpus.
        Without `valid` the end of the text is held out.
    out : run folder; default `runs/NAME-SEED`.
    seed : of weights, dropout masks and shuffles.
    overrides : `"train.epochs=3"` strings, pairs, or a mapping of dotted keys.
    resume : go on from the folder's last checkpoint, to the same bits as without the break.
    device : "cpu" or "cuda", the current GPU. It is no part of the run: what was begun on one may
        be resumed on the other (to other bits; with a `train.math` of float32 only), and is loaded
        anywhere.
    quiet : print nothing.
    backend : kernels' backend; None: the device's, "reference": NumPy's (for tests).
    on_step : called after each step, which on a GPU is waited for.

    Attributes
    ----------
    recipe, run : what was decided, and the run folder.
    model, tokenizer : after `run`: the best model, and its vocabulary.

    Examples
    --------
    >>> from pynlm.train import Trainer
    >>> trainer = Trainer("zaremba-small", out="runs/ptb", seed=1)   # doctest: +SKIP
    >>> result = trainer.run()                                       # doctest: +SKIP
    >>> print(result.test_perplexity, result.gap)                    # doctest: +SKIP
    """

    def __init__(
        self,
        recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
        *,
        corpus: str | None = None,
        text: Source | None = None,
        valid: Source | None = None,
        test: Source | None = None,
        out: str | Path | None = None,
        seed: int | None = None,
        overrides: Overrides = (),
        resume: bool = False,
        device: str = "cpu",
        quiet: bool = False,
        backend: str | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        # Its errors now, not after minutes of reading text.
        self.device, gpu = device, pool_on(device, "Trainer").device
        settings = decide(
            recipe,
            corpus=corpus,
            text=text,
            valid=valid,
            test=test,
            out=out,
            seed=seed,
            overrides=overrides,
            resume=resume,
        )
        self.recipe, self.folder, self.backend = settings.recipe, settings.run, backend
        math = self.recipe.train.math
        if gpu is None and math != "float32":
            raise ValueError(f"train: train.math = {math!r} is for device 'cuda', got {device!r}")
        self._arrays, self._resumes = settings.arrays, settings.resumes
        self._quiet, self._on_step = quiet, on_step
        self._interruption = Interruption()
        self._best_valid: Evaluation | None = None
        self._best_name: str | None = None

    def run(self) -> TrainResult:
        """Train (or go on training), evaluate, and report.

        Raises
        ------
        TrainingDiverged : NaN or infinite loss; the last good checkpoint is kept.
        CheckpointError : a checkpoint cannot be written or read, or does not fit.
        OSError, ValueError, IndexError : text that cannot be used.
        MemoryError : no more of it, on the GPU or at all; what there is is saved.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(self.folder)
        try:
            self._open()
            try:
                math = self.model.pool.computing_in(self.recipe.train.math)
                with self._interruption.listening(), math:
                    stopped = self._train()
                    result = self._finish(stopped)
            except MemoryError as error:
                told = str(self.model.pool.explained(error)) or "out of memory"
                clear_frames(error.__traceback__)  # lets go of the step's arrays
                raise MemoryError(f"{told}; {self._rescue()}") from None
            except (TrainingDiverged, FloatingPointError) as error:
                self._log.write("diverged", step=self.position.step, reason=str(error))
                raise TrainingDiverged(
                    f"{error}: training stopped; {last_good(self.folder)}"
                ) from None
            finally:
                self._reporter.close()
                self._log.close()
        finally:
            lock.release()
        return result

    # ---- beginning

    def _open(self) -> None:
        """Vocabulary, ids, model and optimiser, as new or as the last checkpoint left them."""
        run = self.folder
        snapshot = self._last_snapshot()
        tokenizer = None if snapshot is None else stored_tokenizer(run, snapshot)
        self.data = prepare(self.recipe.data, run / "ids", arrays=self._arrays, tokenizer=tokenizer)
        self.tokenizer = self.data.tokenizer
        recipe = self.recipe = with_cutoffs(self.recipe, self.tokenizer.counts)
        total = make_batches(recipe, self.data, 0).tokens * recipe.train.epochs
        config = model_config(recipe, self.tokenizer.vocab_size)
        counts, dtype = self.tokenizer.counts, recipe.train.dtype
        if snapshot is None:
            tree = given_tree(recipe, self.tokenizer)
            self.model = RecurrentLM(config, dtype, counts=counts, tree=tree, device=self.device)
        else:
            check_data(run, self.data, snapshot)
            place = run / "last" / "model.safetensors"
            self.model = make_model(config, dtype, snapshot.model, place, counts, self.device)
        self._head = self.model.head
        # Only now, so that what cannot be used leaves no run behind.
        with write_aside(run / "config.toml") as file:
            file.write(to_toml(recipe).encode())
        if snapshot is None:
            self.tokenizer.save(run / "tokenizer.json")
        optimiser = make_optimiser(recipe.optimiser, self.model.parameters, backend=self.backend)
        self._bptt = BPTT(self.model, optimiser, recipe.train, backend=self.backend)
        self._schedule = make_schedule(recipe.schedule, recipe.optimiser.lr)
        self.position = Position()
        kept = 0
        if snapshot is None:
            self.model.initialise(recipe.train.seed)
        else:
            self._restore(snapshot)
            kept = int(snapshot.state["log_bytes"])
        self._measured = Measured(self._bptt, self.position)
        self._log = RunLog(run / "log.jsonl", kept)
        self._saved = time.monotonic()
        self._drawn = 0.0
        self._first, self._seconds = self.position.tokens, self.position.seconds
        exact = self._head.exact_in_training
        self._reporter = Reporter(quiet=self._quiet, total=total, done=self._first, exact=exact)
        self._announce(resumed=snapshot is not None)

    def _last_snapshot(self) -> Snapshot | None:
        if not self._resumes:
            return None
        try:
            directory = find_checkpoint(self.folder, "last")
        except CheckpointMissing:
            return None  # killed before the first checkpoint: the same run from its beginning
        snapshot = load_checkpoint(directory)
        missing = sorted(
            {"recipe", "data", "tokenizer", "best", "log_bytes"} - snapshot.state.keys()
        )
        if missing:
            raise CheckpointError(
                f"{directory / 'state.json'} is damaged: it has no {missing[0]!r}"
            )
        check_unchanged(self.folder, snapshot.state, self.recipe)
        self._best_name = restore_links(self.folder, directory, snapshot.state["best"])
        return snapshot

    def _restore(self, snapshot: Snapshot) -> None:
        place = self.folder / "last"
        try:
            self._bptt.load_tensors(snapshot.training)
            self._schedule.load_state_dict(snapshot.state["schedule"])
            self.position = Position(**snapshot.state["position"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{place} does not fit this run: {error}") from None

    def _announce(self, *, resumed: bool) -> None:
        say, recipe, data, p = self._reporter.say, self.recipe, self.data, self.position
        self._log.write(
            "resume" if resumed else "start",
            recipe=recipe.name,
            seed=recipe.train.seed,
            step=p.step,
            parameters=self.model.parameters.count,
            vocabulary=self.tokenizer.vocab_size,
            data=data.digests,
            version=pynlm.__version__,
        )
        for note in (*data.notes, *head_notes(recipe, self.tokenizer.counts)):
            say(note)
        say(heading(recipe, data, self.model.parameters.count, self.tokenizer.vocab_size))
        if resumed:
            say(f"resumed in {self.folder} after step {p.step}, epoch {p.epoch + 1}")
        else:
            say(f"run folder {self.folder}")

    # ---- training

    def _train(self) -> str:
        """Epochs until all are done, or something stops them; how it ended."""
        p, patience = self.position, self.recipe.schedule.early_stop
        while p.epoch < self.recipe.train.epochs:
            if patience and p.waited >= patience:
                return "early stop"
            if not self._epoch():
                return "interrupted"
        return "finished"

    def _epoch(self) -> bool:
        """The rest of an epoch and its validation; False if interrupted."""
        p, train = self.position, self.recipe.train
        batches = make_batches(self.recipe, self.data, p.epoch)
        lr = self._schedule.rate(p.epoch)
        while p.batch < len(batches):
            self._step(batches[p.batch], lr)
            self._heed()
            if self._interruption.pressed:
                self._save()
                return False
            if time.monotonic() - self._saved >= train.checkpoint_seconds:
                self._save()
        self._settle()
        # Validation may be long; a kill during it must not cost the epoch's last minute.
        if p.epoch_tokens:
            self._save()
        began = time.perf_counter()
        valid = self._evaluate(self.data.valid, stripes=train.valid_stripes)
        loss = valid.nats_per_token
        better = p.best_nats is None or loss < p.best_nats
        if better:
            p.best_nats, p.best_epoch, p.waited = loss, p.epoch + 1, 0
            self._best_valid = valid if valid.stripes == 1 else None
        else:
            p.waited += 1
        self._schedule.observe(loss)
        self._end_epoch(lr, loss, better, time.perf_counter() - began)
        p.epoch, p.batch, p.epoch_nats, p.epoch_tokens = p.epoch + 1, 0, 0.0, 0
        self._bptt.state = None
        self._save(best=better)
        self._draw()
        self._heed()
        return not self._interruption.pressed or p.epoch == train.epochs

    def _step(self, batch: Any, lr: float) -> None:
        p, recipe = self.position, self.recipe
        began = time.perf_counter()
        self._measured.add(self._bptt.step(batch, lr=lr, step=p.step + 1))
        p.seconds += time.perf_counter() - began
        p.step, p.batch, p.tokens = p.step + 1, p.batch + 1, p.tokens + batch.tokens
        logs = p.step % recipe.train.log_every == 0
        # On a GPU the host goes on while steps wait there, unless somebody wants to know.
        if logs or self.model.pool.device is None or self._on_step is not None:
            self._settle()
        loss, result = self._measured.loss, self._measured.last
        if logs:
            self._log.write(
                "step",
                step=p.step,
                epoch=p.epoch + 1,
                tokens=p.tokens,
                loss=loss,
                lr=lr,
                grad_norm=result.grad_norm,
                tokens_per_second=round(self._rate(), 1),
                seconds=round(p.seconds, 3),
            )
            p.logged_nats, p.logged_tokens = 0.0, 0
        label = f"epoch {p.epoch + 1}/{recipe.train.epochs}"
        self._reporter.step(tokens=p.tokens, label=label, loss=loss, rate=self._rate())
        if self._on_step is not None:
            nats = result.nats / result.tokens
            self._on_step(Progress(p.step, p.epoch + 1, nats, lr, result.grad_norm, p.tokens))

    def _settle(self) -> None:
        """Know what the steps so far measured; on a GPU this waits for them."""
        began = time.perf_counter()
        self._measured.settle()
        self.position.seconds += time.perf_counter() - began

    def _end_epoch(self, lr: float, loss: float, better: bool, seconds: float) -> None:
        p = self.position
        train = p.epoch_nats / p.epoch_tokens if p.epoch_tokens else float("nan")
        self._log.write(
            "epoch",
            epoch=p.epoch + 1,
            step=p.step,
            tokens=p.tokens,
            lr=lr,
            train_nats=train,
            train_perplexity=perplexity_of(train, self._head.exact_in_training),
            valid_nats=loss,
            valid_perplexity=perplexity_of(loss, self._head.learns_likelihood),
            best=better,
            tokens_per_second=round(self._rate(), 1),
            seconds=round(p.seconds, 3),
            valid_seconds=round(seconds, 3),
            valid_stripes=self.recipe.train.valid_stripes,
        )
        width = len(str(self.recipe.train.epochs))
        stripes = self.recipe.train.valid_stripes
        striped = f" ({stripes} stripes)" if stripes > 1 else ""
        self._reporter.say(
            f"epoch {p.epoch + 1:{width}}/{self.recipe.train.epochs}  "
            f"train {shown(train, self._head.exact_in_training)}  "
            f"valid {shown(loss, self._head.learns_likelihood)}{striped}"
            f"{' *' if better else '  '}  lr {lr:.4g}  {self._rate():,.0f} tokens/s  "
            f"{p.seconds:.1f} s"
        )

    def _rate(self) -> float:
        """Tokens a second of this process's training steps."""
        seconds = self.position.seconds - self._seconds
        return (self.position.tokens - self._first) / seconds if seconds > 0.0 else 0.0

    def _evaluate(self, ids: IntArray, stripes: int = 1) -> Evaluation:
        return evaluate_heldout(
            self.model, ids, self.tokenizer, self.recipe, stripes, self.backend, self._heed
        )

    # ---- saving and ending

    def _save(self, *, best: bool = False) -> None:
        p = self.position
        self._settle()
        if not all_finite(self.model):
            raise TrainingDiverged(f"a weight is not finite after step {p.step}")
        state = {
            "version": pynlm.__version__,
            "recipe": to_mapping(self.recipe),
            "position": asdict(p),
            "schedule": self._schedule.state_dict(),
            "best": self._best_name,
            "tokenizer": self.tokenizer.digest(),
            "data": self.data.digests,
            "log_bytes": self._log.sync(),
        }
        config = json.dumps(self.model.config.to_dict())
        snapshot = Snapshot(
            model=self.model.state_dict(),
            training=self._bptt.tensors(),
            state=state,
            metadata={"config": config, "vocabulary": self.tokenizer.digest()},
        )
        directory = save_checkpoint(self.folder, snapshot, best=best)
        if best:
            self._best_name = directory.name
        self._saved = time.monotonic()

    def _draw(self, *, last: bool = False) -> None:
        if not last and time.monotonic() - self._drawn < CURVE_SECONDS:
            return
        if not self._head.learns_likelihood:
            if last:
                self._reporter.say(f"no curve.png: {self.recipe.head.kind} has no perplexity")
            return
        recipe = self.recipe
        figure = recipe.figure if recipe.figure_applies else None
        target, label = (None, "") if figure is None else figure.target
        missing = draw_curve(
            self._log.path,
            self.folder / "curve.png",
            title=f"{recipe.name}, seed {recipe.train.seed}",
            target=target,
            target_label=label,
            training=self._head.exact_in_training,
        )
        self._drawn = time.monotonic()
        if last and missing:
            self._reporter.say(f"no curve.png: {missing}")

    def _finish(self, stopped: str) -> TrainResult:
        """Evaluate the best model (interrupted: the model as it stands) and report."""
        p, say = self.position, self._reporter.say
        valid = test = None
        if stopped == "interrupted":
            say(f"interrupted after step {p.step}; saved in {self.folder / 'last'}")
            valid = self._evaluate(self.data.valid, stripes=self.recipe.train.valid_stripes)
        else:
            self.model.load_state_dict(load_checkpoint(find_checkpoint(self.folder, "best")).model)
            valid = self._best_valid or self._evaluate(self.data.valid)
            if self.data.test is not None:
                test = self._evaluate(self.data.test)
        heldout = self.data.valid if self.data.test is None else self.data.test
        result = TrainResult(
            out=self.folder,
            recipe=self.recipe,
            valid=valid,
            test=test,
            unigram_perplexity=unigram_perplexity(self.tokenizer.counts, heldout),
            best_epoch=p.best_epoch,
            epochs=p.epoch,
            steps=p.step,
            tokens=p.tokens,
            seconds=p.seconds,
            tokens_per_second=self._rate() or p.tokens / max(p.seconds, 1e-9),
            stopped=stopped,
        )
        self._log.write(
            stopped.replace(" ", "_"),
            step=p.step,
            epochs=p.epoch,
            seconds=round(p.seconds, 3),
            valid=None if valid is None else valid.to_dict(),
            test=None if test is None else test.to_dict(),
            unigram_perplexity=result.unigram_perplexity,
            gap=result.gap,
        )
        self._draw(last=True)
        self._reporter.close()
        if result.interrupted:
            figure = shown(valid.nats_per_token, self._head.learns_likelihood).strip()
            say(f"validation perplexity of the model as it stands {figure}")
            say(f"continue with: pynlm train --resume --out {self.folder}")
        else:
            for line in result.lines():
                say(line)
        return result

    def _rescue(self) -> str:
        """Save a run whose step found no memory; weights are as the step before left them."""
        try:
            self._save()
            found = f"saved in {self.folder / 'last'} (after step {self.position.step})"
        except (MemoryError, TrainingDiverged, CheckpointError):
            found = last_good(self.folder)
        return f"{found}; continue with: pynlm train --resume --out {self.folder}"

    def _heed(self, _: int = 0) -> None:
        """After each step, and each piece of an evaluation: say once that Ctrl-C was heard."""
        self._interruption.tell(self._reporter.say)


def run_training(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None, **arguments: Any
) -> TrainResult:
    """Train by a recipe: `Trainer(recipe, **arguments).run()`, what `pynlm train` does."""
    return Trainer(recipe, **arguments).run()
