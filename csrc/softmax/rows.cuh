// What the losses on a GPU share: rows of logits as a product left them, read in packets, and their
// largest value and sum of exponentials in one read.
#pragma once

#include "common/cuda.h"
#include "common/packet.h"

// Warps that share a row: 1, or 8 for rows of many words.
#ifndef ROW_WARPS
#define ROW_WARPS 8
#endif
// Whether rows have a hidden word.
#ifndef ROW_HIDES
#define ROW_HIDES 0
#endif
constexpr int kRowWarps = ROW_WARPS, kRowThreads = kRowWarps * kWarp;
constexpr int kRowsABlock = 8 / kRowWarps;

constexpr int kPacket = 16 / int(sizeof(REAL));
using Logits = Packet<REAL, kPacket>;
constexpr REAL kLowest =
    sizeof(REAL) == 4 ? REAL(-3.402823466e+38) : REAL(-1.7976931348623157e+308);

// Packets that a thread has on their way at a time, and what is between them.
constexpr int kAhead = sizeof(REAL) == 4 ? 2 : 1;
constexpr int kStep = kRowThreads * kPacket;

// The bias of words v and following, 0 beyond V.
NLM_FN Logits bias_packet(const REAL* b, int v, int V) {
    if (uint64_t(b) % 16 == 0 && v + kPacket <= V) return load_packet<REAL, kPacket>(b + v);
    Logits x;
#pragma unroll
    for (int j = 0; j < kPacket; ++j) x.at[j] = v + j < V ? b[v + j] : REAL(0);
    return x;
}

// One row: (z + b) * inverse, -inf for the word `hidden` (where ROW_HIDES).
struct Row {
    const REAL* z;
    const REAL* b;  // may be null
    int V;
    REAL inverse;
    bool aligned;  // z, to 16 bytes
    int hidden = -1;

    NLM_FN REAL at(int v) const {
        const REAL x = (z[v] + (b != nullptr ? b[v] : REAL(0))) * inverse;
        return ROW_HIDES && v == hidden ? REAL(-nlm_infinity()) : x;
    }
    // Those of v + u kStep and following; -inf beyond V.
    NLM_FN void packets(int v, Logits (&x)[kAhead]) const {
        if (aligned && v + (kAhead - 1) * kStep + kPacket <= V) {
#pragma unroll
            for (int u = 0; u < kAhead; ++u) x[u] = load_packet<REAL, kPacket>(z + v + u * kStep);
            if (b != nullptr) {
                Logits shift[kAhead];
#pragma unroll
                for (int u = 0; u < kAhead; ++u) shift[u] = bias_packet(b, v + u * kStep, V);
#pragma unroll
                for (int u = 0; u < kAhead; ++u)
#pragma unroll
                    for (int j = 0; j < kPacket; ++j) x[u].at[j] += shift[u].at[j];
            }
#pragma unroll
            for (int u = 0; u < kAhead; ++u)
#pragma unroll
                for (int j = 0; j < kPacket; ++j) {
                    x[u].at[j] *= inverse;
                    if (ROW_HIDES && v + u * kStep + j == hidden)
                        x[u].at[j] = REAL(-nlm_infinity());
                }
        } else {
#pragma unroll
            for (int u = 0; u < kAhead; ++u)
#pragma unroll
                for (int j = 0; j < kPacket; ++j) {
                    const int word = v + u * kStep + j;
                    x[u].at[j] = word < V ? at(word) : REAL(-nlm_infinity());
                }
        }
    }
};

// This thread's row among those of its block, and its number among the row's threads.
NLM_FN int64_t first_row() {
    return int64_t(blockIdx.x) * kRowsABlock + int64_t(threadIdx.x) / kRowThreads;
}
NLM_FN int64_t row_step() { return int64_t(gridDim.x) * kRowsABlock; }
NLM_FN int row_thread() { return int(threadIdx.x) % kRowThreads; }

// top = max x, sum of exp(x - top), and if asked for of x. NaN shows in the sums, not in top.
struct RowSums {
    REAL top;
    double sum, total;
};

// Calls body(first word, logits) for a thread's share of a row, in packets.
template <class Body>
NLM_FN void each_packet(const Row& row, const Body& body) {
    for (int v = row_thread() * kPacket; v < row.V; v += kAhead * kStep) {
        Logits x[kAhead];
        row.packets(v, x);
#pragma unroll
        for (int u = 0; u < kAhead; ++u)
            if (v + u * kStep < row.V) body(v + u * kStep, x[u]);
    }
}

// Of this thread's share.
template <bool kTotal>
NLM_FN RowSums thread_sums(const Row& row) {
    RowSums mine{kLowest, 0, 0};
    for (int v = row_thread() * kPacket; v < row.V; v += kAhead * kStep) {
        Logits x[kAhead];
        row.packets(v, x);
        REAL top = mine.top, sum = 0;
#pragma unroll
        for (int u = 0; u < kAhead; ++u)
#pragma unroll
            for (int j = 0; j < kPacket; ++j) top = x[u].at[j] > top ? x[u].at[j] : top;
#pragma unroll
        for (int u = 0; u < kAhead; ++u)
#pragma unroll
            for (int j = 0; j < kPacket; ++j) sum += exp(x[u].at[j] - top);
        mine.sum = mine.sum * double(exp(mine.top - top)) + double(sum);
        mine.top = top;
        if (kTotal) {
#pragma unroll
            for (int u = 0; u < kAhead; ++u)
#pragma unroll
                for (int j = 0; j < kPacket; ++j)
                    mine.total += v + u * kStep + j < row.V ? double(x[u].at[j]) : 0.0;
        }
    }
    return mine;
}

// A row's threads put theirs together, in one order; bytes of shared memory are kJoinBytes.
constexpr int kJoinBytes = (3 * kRowThreads + 3) * 8;

NLM_FN void join_warp(RowSums& s) {
    const REAL top = warp_max(s.top);
    s.sum = warp_sum(s.sum * double(exp(s.top - top)));
    s.total = warp_sum(s.total);
    s.top = top;
}

NLM_FN RowSums join(RowSums mine) {
    if constexpr (kRowWarps == 1) {
        join_warp(mine);
    } else {
        double* const tops = nlm_shared<double>();
        double *const sums = tops + kRowThreads, *const totals = sums + kRowThreads;
        double* const joined = totals + kRowThreads;
        const int thread = row_thread();
        tops[thread] = double(mine.top);
        sums[thread] = mine.sum;
        totals[thread] = mine.total;
        __syncthreads();
        if (thread < kWarp) {
            for (int w = 1; w < kRowWarps; ++w) {
                const REAL other = REAL(tops[w * kWarp + thread]);
                mine.top = other > mine.top ? other : mine.top;
            }
            mine.sum = mine.total = 0;
            for (int w = 0; w < kRowWarps; ++w) {
                const int i = w * kWarp + thread;
                mine.sum += sums[i] * double(exp(REAL(tops[i]) - mine.top));
                mine.total += totals[i];
            }
            join_warp(mine);
            if (thread == 0) joined[0] = double(mine.top), joined[1] = mine.sum;
            if (thread == 0) joined[2] = mine.total;
        }
        __syncthreads();
        mine = {REAL(joined[0]), joined[1], joined[2]};
    }
    return mine;
}

template <bool kTotal>
NLM_FN RowSums row_sums(const Row& row) {
    return join(thread_sums<kTotal>(row));
}

// Gradients of logits are made in tiles: a span of rows, equal over the grid's second dimension, by
// 32 packets of words over its first. What rows need of their losses (`kinds` numbers each) and an
// id of each are in shared memory.
constexpr int kTileWords = kWarp * kPacket, kTileWarps = 8, kMostSpan = 128;
constexpr int kRowsAhead = sizeof(REAL) == 4 ? 4 : 2;

struct Span {
    int64_t first;
    int count;
    const REAL* facts;   // [kinds, kMostSpan]
    const int32_t* ids;  // [kMostSpan]
    REAL* parts;         // [kTileWarps, kTileWords], for tile_gradients
    void* rest;

    NLM_FN REAL fact(int kind, int r) const { return facts[kind * kMostSpan + r]; }
};

// From facts [kinds, N] and ids [N].
NLM_FN Span load_span(const REAL* facts, int kinds, const int32_t* ids, int64_t N, int span) {
    REAL* const parts = nlm_shared<REAL>();
    REAL* const own = parts + kTileWarps * kTileWords;
    int32_t* const own_ids = reinterpret_cast<int32_t*>(own + kinds * kMostSpan);
    const int64_t first = int64_t(blockIdx.y) * span;
    const int count = int(first + span < N ? span : N - first);
    for (int r = int(threadIdx.x); r < count; r += int(blockDim.x)) {
        for (int k = 0; k < kinds; ++k) own[k * kMostSpan + r] = facts[k * N + first + r];
        own_ids[r] = ids[first + r];
    }
    __syncthreads();
    return {first, count, own, own_ids, parts, own_ids + kMostSpan};
}

// Calls body(row of the span, first word, logits) for a thread's share of a tile, in packets;
// what is beyond V is arbitrary.
template <class Body>
NLM_FN void each_tile_packet(const Span& span, const REAL* z, const REAL* b, int V, int64_t width,
                             REAL inverse, const Body& body) {
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int v = int(blockIdx.x) * kTileWords + lane * kPacket;
    if (v >= V) return;
    const Logits shift = b != nullptr ? bias_packet(b, v, V) : Logits{};
    const REAL* const own = z + span.first * width + v;
    for (int first = warp; first < span.count; first += kRowsAhead * kTileWarps) {
        Logits x[kRowsAhead];
#pragma unroll
        for (int u = 0; u < kRowsAhead; ++u) {
            const int r = first + u * kTileWarps;
            if (r < span.count) x[u] = load_packet<REAL, kPacket>(own + r * width);
        }
#pragma unroll
        for (int u = 0; u < kRowsAhead; ++u) {
            const int r = first + u * kTileWarps;
            if (r >= span.count) continue;
#pragma unroll
            for (int j = 0; j < kPacket; ++j) x[u].at[j] = (x[u].at[j] + shift.at[j]) * inverse;
            body(r, v, x[u]);
        }
    }
}

// gradient(row of the span, first word, logits) gives a packet, which goes to z; sums[blockIdx.y,
// v], where not null, are those over the span. Reads and writes each logit once; bound by memory.
template <class Gradient>
NLM_FN void tile_gradients(const Span& span, REAL* z, REAL* sums, const REAL* b, int V,
                           int64_t width, REAL inverse, const Gradient& gradient) {
    const int thread = int(threadIdx.x), first = int(blockIdx.x) * kTileWords;
    Logits sum = {};
    each_tile_packet(span, z, b, V, width, inverse, [&](int r, int v, const Logits& x) {
        const Logits dz = gradient(r, v, x);
#pragma unroll
        for (int j = 0; j < kPacket; ++j) sum.at[j] += dz.at[j];
        store_packet(z + (span.first + r) * width + v, dz);
    });
    if (sums == nullptr) return;
    store_packet(span.parts + thread * kPacket, sum);
    __syncthreads();
    if (thread >= kTileWords || first + thread >= V) return;
    REAL all = 0;
    for (int w = 0; w < kTileWarps; ++w) all += span.parts[w * kTileWords + thread];
    sums[int64_t(blockIdx.y) * V + first + thread] = all;
}
