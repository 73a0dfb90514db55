"""Training: recipes, optimisers, schedules, checkpoints that survive anything, and the trainer.

>>> from pynlm.train import Trainer
>>> trainer = Trainer("zaremba-small", out="runs/ptb", seed=1)   # doctest: +SKIP
>>> result = trainer.run()                                       # doctest: +SKIP
>>> print(result.valid_perplexity, result.test_perplexity, result.gap)  # doctest: +SKIP
"""

from pynlm.train.bptt import BPTT, StepResult, TrainingDiverged
from pynlm.train.checkpoint import (
    CheckpointError,
    CheckpointMissing,
    CheckpointWriteError,
    find_checkpoint,
    load_model,
)
from pynlm.train.config import Recipe, RecipeError, load_recipe, recipe_names
from pynlm.train.position import Progress
from pynlm.train.result import TrainResult
from pynlm.train.settings import ResumeError
from pynlm.train.trainer import Trainer, run_training

__all__ = [
    "BPTT",
    "CheckpointError",
    "CheckpointMissing",
    "CheckpointWriteError",
    "Progress",
    "Recipe",
    "RecipeError",
    "ResumeError",
    "StepResult",
    "TrainResult",
    "Trainer",
    "TrainingDiverged",
    "find_checkpoint",
    "load_model",
    "load_recipe",
    "recipe_names",
    "run_training",
]
