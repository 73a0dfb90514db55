"""Text: vocabularies, corpora by name, token ids on disk, and the batches a model trains on."""

from pynlm.text.batches import Batch, ContiguousBatches, SentenceBatches
from pynlm.text.clusters import read_clusters
from pynlm.text.coders import UnknownTokenError
from pynlm.text.corpus import Corpus, corpus_names, load_corpus
from pynlm.text.files import write_aside
from pynlm.text.ids import as_ids, check_ids, sentence_spans
from pynlm.text.store import TokenStore
from pynlm.text.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "ContiguousBatches",
    "Corpus",
    "SentenceBatches",
    "TokenStore",
    "Tokenizer",
    "UnknownTokenError",
    "as_ids",
    "check_ids",
    "corpus_names",
    "load_corpus",
    "read_clusters",
    "sentence_spans",
    "write_aside",
]
