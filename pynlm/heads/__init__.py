"""Heads: from hidden states to the loss of the next token."""

from pynlm.heads.base import Head, HeadBackprop
from pynlm.heads.full import Full

__all__ = ["Full", "Head", "HeadBackprop"]
