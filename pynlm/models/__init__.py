"""Models: layers and a head, from token ids to losses."""

from pynlm.models.config import RecurrentLMConfig
from pynlm.models.recurrent_lm import ModelState, RecurrentLM

__all__ = ["ModelState", "RecurrentLM", "RecurrentLMConfig"]
