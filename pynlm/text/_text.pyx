# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: auto_pickle=False, autotestdict=False
"""Bulk loops over text and token ids.

Segmentation and vocabularies belong to the ``tokenizers`` library. The loops here give the same
ids for its whitespace pre-tokeniser with a WordLevel model, at about 100 MB/s, because a training
corpus has millions of words and an encoder that makes a Python object of each takes minutes.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcmp
from libcpp.vector cimport vector

import numpy as np


cdef inline Py_ssize_t _space(const unsigned char* p, Py_ssize_t left) noexcept nogil:
    """Bytes of the white space character at `p`, 0 where there is none.

    Exactly the Unicode property White_Space, which is what `tokenizers` (Rust) splits at; Python's
    str.split differs (it also splits at U+001C to U+001F).
    """
    cdef unsigned char c = p[0]
    if c < 0x80:
        return 1 if c == 32 or 9 <= c <= 13 else 0
    if c == 0xC2:  # U+0085, U+00A0
        return 2 if left >= 2 and (p[1] == 0x85 or p[1] == 0xA0) else 0
    if left < 3:
        return 0
    if c == 0xE2:
        if p[1] == 0x80:  # U+2000..U+200A, U+2028, U+2029, U+202F
            return 3 if (0x80 <= p[2] <= 0x8A or p[2] == 0xA8 or p[2] == 0xA9
                         or p[2] == 0xAF) else 0
        return 3 if p[1] == 0x81 and p[2] == 0x9F else 0  # U+205F
    if c == 0xE1:
        return 3 if p[1] == 0x9A and p[2] == 0x80 else 0  # U+1680
    if c == 0xE3:
        return 3 if p[1] == 0x80 and p[2] == 0x80 else 0  # U+3000
    return 0


cdef class WordTable:
    """Words in the order in which they were added, with a count each.

    An open-addressing hash table over the UTF-8 bytes; a word's index is its place in that order.

    Parameters
    ----------
    words : sequence of bytes
        Words to start from. A repeated word raises ValueError.
    counts : sequence of int, optional
        Their counts, default 0.
    """

    cdef vector[char] _bytes        # all words, one after another
    cdef vector[size_t] _end        # where each of them ends
    cdef vector[uint64_t] _hash
    cdef vector[int64_t] _count
    cdef vector[int32_t] _slot      # index of the word, -1 where empty; a power of two long

    def __cinit__(self, *args, **kwargs):
        self._slot.assign(1024, -1)

    def __init__(self, words=(), counts=None):
        cdef bytes word
        cdef size_t k
        cdef const unsigned char* p
        cdef Py_ssize_t n
        cdef uint64_t h
        for word in words:
            p = word
            n = len(word)
            h = self._hash_of(p, n)
            if self._find(p, n, h) >= 0:
                raise ValueError(f"WordTable: words must differ, got {word!r} twice")
            self._insert(p, n, h)
        if counts is not None:
            if len(counts) != len(self):
                raise ValueError(f"WordTable: counts must be one a word [{len(self)}], "
                                 f"got [{len(counts)}]")
            for k in range(self._count.size()):
                self._count[k] = counts[k]

    def __reduce__(self):
        return WordTable, (self.words(), self.counts().tolist())

    def __len__(self):
        return self._end.size()

    cdef inline uint64_t _hash_of(self, const unsigned char* p, Py_ssize_t n) noexcept nogil:
        cdef uint64_t h = 0xCBF29CE484222325ULL  # FNV-1a, its high bits folded down at the end
        cdef Py_ssize_t i
        for i in range(n):
            h = (h ^ p[i]) * <uint64_t>0x100000001B3ULL
        return h ^ (h >> 32)

    cdef inline int32_t _find(
        self, const unsigned char* p, Py_ssize_t n, uint64_t h
    ) noexcept nogil:
        cdef size_t mask = self._slot.size() - 1
        cdef size_t at = h & mask
        cdef size_t begin
        cdef int32_t k
        while True:
            k = self._slot[at]
            if k < 0:
                return -1
            if self._hash[k] == h:
                begin = self._end[k - 1] if k > 0 else 0
                if <Py_ssize_t>(self._end[k] - begin) == n \
                        and memcmp(self._bytes.data() + begin, p, n) == 0:
                    return k
            at = (at + 1) & mask

    cdef int _insert(self, const unsigned char* p, Py_ssize_t n, uint64_t h) except -1 nogil:
        cdef size_t mask, at
        cdef size_t k
        cdef const char* s = <const char*>p
        if 2 * (self._end.size() + 1) > self._slot.size():
            self._slot.assign(2 * self._slot.size(), -1)
            mask = self._slot.size() - 1
            for k in range(self._end.size()):
                at = self._hash[k] & mask
                while self._slot[at] >= 0:
                    at = (at + 1) & mask
                self._slot[at] = <int32_t>k
        mask = self._slot.size() - 1
        at = h & mask
        while self._slot[at] >= 0:
            at = (at + 1) & mask
        self._slot[at] = <int32_t>self._end.size()
        self._bytes.insert(self._bytes.end(), s, s + n)
        self._end.push_back(self._bytes.size())
        self._hash.push_back(h)
        self._count.push_back(0)
        return 0

    def count(self, bytes chunk not None):
        """Count the words of `chunk` (UTF-8; its ends must be ends of words)."""
        cdef const unsigned char* p = chunk
        cdef Py_ssize_t n = len(chunk)
        cdef Py_ssize_t i = 0, begin, width
        cdef int32_t k
        cdef uint64_t h
        with nogil:
            while i < n:
                width = _space(p + i, n - i)
                if width > 0:
                    i += width
                    continue
                begin = i
                while i < n and _space(p + i, n - i) == 0:
                    i += 1
                h = self._hash_of(p + begin, i - begin)
                k = self._find(p + begin, i - begin, h)
                if k < 0:
                    k = <int32_t>self._end.size()
                    self._insert(p + begin, i - begin, h)
                self._count[k] += 1

    def encode(self, bytes chunk not None, int32_t eos, int32_t unk):
        """Indices of the words of `chunk`, with `eos` at every newline.

        Parameters
        ----------
        chunk : bytes
            UTF-8; its ends must be ends of words.
        eos : int
            Id to put at each newline byte; negative for none.
        unk : int
            Id for words that are not in the table; negative to stop at the first of them.

        Returns
        -------
        ids : int32 [n]
        stop : int
            Offset of the word at which the loop stopped, -1 if it went through.
        """
        cdef const unsigned char* p = chunk
        cdef Py_ssize_t n = len(chunk)
        # No byte gives more than one id, so this never runs over; untouched pages cost nothing.
        out = np.empty(n, dtype=np.int32)
        cdef int32_t[::1] o = out
        cdef Py_ssize_t i = 0, begin, width, filled = 0, stop = -1
        cdef int32_t k
        with nogil:
            while i < n:
                width = _space(p + i, n - i)
                if width > 0:
                    if p[i] == 10 and eos >= 0:
                        o[filled] = eos
                        filled += 1
                    i += width
                    continue
                begin = i
                while i < n and _space(p + i, n - i) == 0:
                    i += 1
                k = self._find(p + begin, i - begin, self._hash_of(p + begin, i - begin))
                if k < 0:
                    if unk < 0:
                        stop = begin
                        break
                    k = unk
                o[filled] = k
                filled += 1
        return out[:filled].copy(), stop

    def words(self):
        """The words, a list of bytes."""
        cdef size_t k, begin = 0
        cdef const char* p = self._bytes.data()
        result = []
        for k in range(self._end.size()):
            result.append(p[begin:self._end[k]])
            begin = self._end[k]
        return result

    def counts(self):
        """How often each word was counted, int64 [len(self)]."""
        out = np.empty(self._count.size(), dtype=np.int64)
        cdef int64_t[::1] o = out
        cdef size_t k
        for k in range(self._count.size()):
            o[k] = self._count[k]
        return out


def first_outside(const int32_t[::1] ids, int32_t size):
    """Position of the first id outside [0, size), -1 if there is none."""
    cdef Py_ssize_t i, n = ids.shape[0], at = -1
    with nogil:
        for i in range(n):
            if ids[i] < 0 or ids[i] >= size:
                at = i
                break
    return at


def cut_window(const int32_t[::1] ids, Py_ssize_t stripe, Py_ssize_t start,
               int32_t[:, ::1] inputs, int32_t[:, ::1] targets):
    """Fill `inputs` and `targets` [T, B] from `B` stripes of `stripe` ids, from step `start` on.

    ``inputs[t, b] = ids[b * stripe + start + t]``, and the target is the id that follows.
    """
    cdef Py_ssize_t steps = inputs.shape[0], rows = inputs.shape[1]
    cdef Py_ssize_t t, b, base
    if targets.shape[0] != steps or targets.shape[1] != rows:
        raise ValueError("cut_window: inputs and targets must have the same shape")
    if start < 0 or stripe < 0 or start + steps + 1 > stripe or rows * stripe > ids.shape[0]:
        raise ValueError(f"cut_window: window {start}..{start + steps} of {rows} stripes of "
                         f"{stripe} ids does not fit in {ids.shape[0]} ids")
    with nogil:
        for b in range(rows):
            base = b * stripe + start
            for t in range(steps):
                inputs[t, b] = ids[base + t]
                targets[t, b] = ids[base + t + 1]


def pad_sentences(const int32_t[::1] ids, const int64_t[::1] starts, const int32_t[::1] lengths,
                  int32_t first, int32_t[:, ::1] inputs, int32_t[:, ::1] targets):
    """Fill `inputs` and `targets` [T, B] from the sentences ``ids[starts[b]:][:lengths[b]]``.

    A row's targets are its sentence; its inputs are each the id before (`first` where there is
    none). Beyond its length both hold `first`.
    """
    cdef Py_ssize_t steps = inputs.shape[0], rows = inputs.shape[1]
    cdef Py_ssize_t t, b, n
    cdef int64_t base
    if (targets.shape[0] != steps or targets.shape[1] != rows
            or starts.shape[0] != rows or lengths.shape[0] != rows):
        raise ValueError("pad_sentences: inputs, targets, starts and lengths must agree in shape")
    for b in range(rows):
        if (lengths[b] < 0 or lengths[b] > steps or starts[b] < 0
                or starts[b] + lengths[b] > ids.shape[0]):
            raise ValueError(f"pad_sentences: sentence {b} ({starts[b]}, length {lengths[b]}) does "
                             f"not fit in {ids.shape[0]} ids and {steps} steps")
    with nogil:
        for b in range(rows):
            n = lengths[b]
            base = starts[b]
            for t in range(n):
                inputs[t, b] = ids[base + t - 1] if base + t > 0 else first
                targets[t, b] = ids[base + t]
            for t in range(n, steps):
                inputs[t, b] = first
                targets[t, b] = first
