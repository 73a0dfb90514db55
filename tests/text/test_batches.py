"""Windows of running text, and padded sentences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynlm.text import ContiguousBatches, SentenceBatches, TokenStore, sentence_spans
from pynlm.text._text import cut_window, pad_sentences

EOS = 0


def joined(batches):
    """Inputs and targets of all windows, [B, steps]."""
    parts = list(batches)
    return (
        np.concatenate([batch.ids for batch in parts]).T,
        np.concatenate([batch.targets for batch in parts]).T,
    )


@given(n=st.integers(2, 200), size=st.integers(1, 7), bptt=st.integers(1, 11))
def test_windows_cover_the_stripes(n, size, bptt):
    ids = np.arange(n, dtype=np.int32)
    stripe = n // size
    steps = max(stripe - 1, 0) // bptt * bptt
    if not steps:
        with pytest.raises(ValueError, match="shorter than one batch"):
            ContiguousBatches(ids, size, bptt)
        return
    batches = ContiguousBatches(ids, size, bptt)
    inputs, targets = joined(batches)
    expected = ids[: stripe * size].reshape(size, stripe)
    assert np.array_equal(inputs, expected[:, :steps])
    assert np.array_equal(targets, expected[:, 1 : steps + 1])
    assert batches.tokens == steps * size == sum(batch.tokens for batch in batches)
    assert [batch.fresh for batch in batches] == [True] + [False] * (len(batches) - 1)
    for batch in batches:
        assert batch.ids.dtype == batch.targets.dtype == np.int32
        assert batch.ids.flags.c_contiguous and batch.targets.flags.c_contiguous
        assert batch.lengths is None


def test_zaremba_counts():
    # PTB's training text: 2323 windows of 20 steps, 1327 of 35, as in the published code
    ids = np.zeros(929_589, np.int32)
    assert len(ContiguousBatches(ids, 20, 20)) == 2323
    assert len(ContiguousBatches(ids, 20, 35)) == 1327


def test_batches_have_positions():
    batches = ContiguousBatches(range(100), 3, 4)
    listed = list(batches)
    assert len(listed) == len(batches) == 8
    assert np.array_equal(listed[5].ids, batches[5].ids)
    assert np.array_equal(listed[-1].ids, batches[-1].ids)
    with pytest.raises(IndexError, match=r"ContiguousBatches: batch 8 is not in \[0, 8\)"):
        batches[8]


def test_ids_are_not_copied(tmp_path):
    ids = np.arange(100, dtype=np.int32)
    assert ContiguousBatches(ids, 2, 5).ids is ids
    store = TokenStore.write(tmp_path / "a.ids", [ids])
    batches = ContiguousBatches(store, 2, 5, vocab_size=100)
    assert batches.ids is store.ids
    assert np.array_equal(batches[3].ids, ContiguousBatches(ids, 2, 5)[3].ids)


def test_errors():
    with pytest.raises(
        ValueError, match=r"has 50 tokens, and batch_size \* \(bptt \+ 1\) = 10 \* \(5 \+ 1\) = 60"
    ):
        ContiguousBatches(range(50), 10, 5)
    with pytest.raises(ValueError, match=r"has 0 tokens"):
        ContiguousBatches([], 10, 5)
    with pytest.raises(ValueError, match="bptt must be at least 1, got 0"):
        ContiguousBatches(range(50), 10, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ContiguousBatches(range(50), 0, 5)
    with pytest.raises(IndexError, match=r"id 30 at position 30 is not in \[0, 30\)"):
        ContiguousBatches(range(50), 2, 5, vocab_size=30)
    with pytest.raises(TypeError, match="ids must be integers"):
        ContiguousBatches([0.5, 1.5], 1, 1)
    with pytest.raises(ValueError, match="2 sentences, and batch_size = 3 are needed"):
        SentenceBatches([1, EOS, 2], EOS, 3, seed=1)
    with pytest.raises(ValueError, match="0 sentences"):
        SentenceBatches([], EOS, 1, seed=1)
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        SentenceBatches([1, EOS], EOS, 1, seed=1, max_length=0)
    with pytest.raises(IndexError, match="id 5 at position 1"):
        SentenceBatches([1, 5, EOS], EOS, 1, seed=1, vocab_size=5)


def sentences_of(batches):
    """The sentences as (inputs, targets) tuples, with the padding checked and taken away."""
    found = []
    for batch in batches:
        assert batch.fresh
        assert np.all(np.diff(batch.lengths) <= 0) and batch.lengths[0] == len(batch.ids)
        for b, n in enumerate(batch.lengths):
            found.append((tuple(batch.ids[:n, b].tolist()), tuple(batch.targets[:n, b].tolist())))
            assert np.all(batch.ids[n:, b] == EOS) and np.all(batch.targets[n:, b] == EOS)
    return found


def expected_sentences(ids):
    rows, row = [], []
    for i in ids:
        row.append(i)
        if i == EOS:
            rows.append(row)
            row = []
    rows += [row] if row else []
    return [((EOS, *row[:-1]), tuple(row)) for row in rows]


def test_tokens_after_the_last_eos_are_a_sentence():
    starts, lengths = sentence_spans(np.array([1, EOS, 2, 2], np.int32), EOS)
    assert (starts.tolist(), lengths.tolist()) == ([0, 2], [2, 2])
    assert [x.dtype for x in (starts, lengths)] == [np.int64, np.int64]
    assert [len(x) for x in sentence_spans(np.zeros(0, np.int32), EOS)] == [0, 0]


@given(ids=st.lists(st.integers(0, 3), max_size=40), block=st.integers(1, 9))
def test_sentences_do_not_depend_on_blocks(ids, block):
    array = np.array(ids, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pynlm.text.ids._BLOCK", block)
        starts, lengths = sentence_spans(array, EOS)
    found = [tuple(ids[a : a + n]) for a, n in zip(starts, lengths, strict=True)]
    assert found == [targets for _, targets in expected_sentences(ids)]


@given(
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    size=st.integers(1, 4),
    seed=st.none() | st.integers(0, 2**32 - 1),
)
def test_every_sentence_once(ids, size, seed):
    expected = expected_sentences(ids)
    if len(expected) < size:
        return
    batches = SentenceBatches(ids, EOS, size, seed)
    assert sorted(sentences_of(batches)) == sorted(expected)
    assert batches.tokens == len(ids) == sum(batch.tokens for batch in batches)
    assert len(batches) == -(-len(expected) // size)
    if seed is None:
        assert sorted(sentences_of([batches[0]])) == sorted(expected[:size])


def test_order_is_drawn_anew_each_epoch_and_is_the_same_again():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 10, 5000, np.int32)
    orders = {}
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        batches = SentenceBatches(ids, EOS, 7, seed, epoch)
        order = sentences_of(batches)
        assert order == sentences_of(SentenceBatches(ids, EOS, 7, seed, epoch))
        assert sorted(order) == sorted(expected_sentences(ids.tolist()))
        orders[seed, epoch] = tuple(order)
        assert len(batches[-1].lengths) == len(order) % 7 or len(order) % 7 == 0
        assert sum(batch.ids.size for batch in batches) < 1.3 * len(ids)
    assert len(set(orders.values())) == 3


def test_the_order_never_changes():
    # resuming a run of an older version must give the same batches
    ids = np.array([i for k in range(1, 9) for i in [k] * k + [EOS]])
    batches = SentenceBatches(ids, EOS, 2, seed=7, epoch=3)
    assert [batch.targets[0].tolist() for batch in batches] == ORDER


ORDER = [[6, 5], [8, 7], [2, 1], [4, 3]]


def test_long_sentences_are_cut():
    ids = [1, 2, 3, 4, EOS, 5, EOS, 6, 7]
    batches = SentenceBatches(ids, EOS, 2, None, max_length=2)
    assert sorted(sentences_of(batches)) == [
        ((0, 1), (1, 2)),
        ((0, 5), (5, 0)),
        ((0, 6), (6, 7)),
        ((2, 3), (3, 4)),
        ((4,), (0,)),
    ]


def test_compiled_functions_refuse_what_does_not_fit():
    ids = np.arange(10, dtype=np.int32)
    out = np.empty((3, 2), np.int32)
    for stripe, start in ((5, 2), (6, 0), (5, -1)):
        with pytest.raises(ValueError, match="does not fit"):
            cut_window(ids, stripe, start, out, out.copy())
    with pytest.raises(ValueError, match="same shape"):
        cut_window(ids, 5, 0, out, np.empty((2, 2), np.int32))
    lengths = np.array([3, 3], np.int32)
    with pytest.raises(ValueError, match="sentence 1"):
        pad_sentences(ids, np.array([0, 8]), lengths, EOS, out, out.copy())
    with pytest.raises(ValueError, match="agree in shape"):
        pad_sentences(ids, np.array([0]), lengths, EOS, out, out.copy())
