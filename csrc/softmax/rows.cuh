// What the losses on a GPU share: rows of logits as a product left them, read in packets, and their
// largest value and sum of exponentials in one read.
#pragma once

#include "common/cuda.h"
#include "common/packet.h"

// Warps that share a row: 1, or 8 for rows of many words.
#ifndef ROW_WARPS
#define ROW_WARPS 8
#endif
constexpr int kRowWarps = ROW_WARPS, kRowThreads = kRowWarps * kWarp;
constexpr int kRowsABlock = 8 / kRowWarps;

constexpr int kPacket = 16 / int(sizeof(REAL));
using Logits = Packet<REAL, kPacket>;
constexpr REAL kLowest =
    sizeof(REAL) == 4 ? REAL(-3.402823466e+38) : REAL(-1.7976931348623157e+308);

// One row: (z + b) * inverse, -inf for the word `hidden`. z is followed by what makes its length a
// multiple of a packet if `aligned`.
struct Row {
    const REAL* z;
    const REAL* b;  // may be null
    int V;
    REAL inverse;
    bool aligned;
    int hidden = -1;

    NLM_FN REAL at(int v) const {
        if (v == hidden) return REAL(-nlm_infinity());
        return (z[v] + (b != nullptr ? b[v] : REAL(0))) * inverse;
    }
    // Those of v and following, v a multiple of kPacket; -inf beyond V.
    NLM_FN Logits packet(int v) const {
        Logits x, shift;
        if (aligned && v < V) {
            x = load_packet<REAL, kPacket>(z + v);
        } else {
#pragma unroll
            for (int j = 0; j < kPacket; ++j) x.at[j] = v + j < V ? z[v + j] : REAL(0);
        }
        if (b != nullptr && uint64_t(b) % 16 == 0 && v + kPacket <= V) {
            shift = load_packet<REAL, kPacket>(b + v);
        } else {
#pragma unroll
            for (int j = 0; j < kPacket; ++j)
                shift.at[j] = b != nullptr && v + j < V ? b[v + j] : REAL(0);
        }
#pragma unroll
        for (int j = 0; j < kPacket; ++j) {
            const bool there = v + j < V && v + j != hidden;
            x.at[j] = there ? (x.at[j] + shift.at[j]) * inverse : REAL(-nlm_infinity());
        }
        return x;
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

// Packets that a thread has on their way at a time.
constexpr int kAhead = sizeof(REAL) == 4 ? 4 : 1;

// Calls body(first word, logits) for a thread's share of a row, in packets.
template <class Body>
NLM_FN void each_packet(const Row& row, const Body& body) {
    constexpr int kStep = kRowThreads * kPacket;
#pragma unroll kAhead
    for (int v = row_thread() * kPacket; v < row.V; v += kStep) body(v, row.packet(v));
}

// Of this thread's share.
template <bool kTotal>
NLM_FN RowSums thread_sums(const Row& row) {
    constexpr int kStep = kRowThreads * kPacket;
    RowSums mine{kLowest, 0, 0};
    for (int v = row_thread() * kPacket; v < row.V; v += kAhead * kStep) {
        Logits x[kAhead];
#pragma unroll
        for (int u = 0; u < kAhead; ++u) x[u] = row.packet(v + u * kStep);
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

// Gradients of logits in place of them, for `span` rows by 32 packets of words; block (words,
// span). gradient(row of the span, first word, logits) gives a packet. sums[blockIdx.y, v], where
// not null, are those over the span. Reads and writes each logit once; bound by memory.
constexpr int kTileWords = kWarp * kPacket, kTileWarps = 8;
// Of double precision one more would not fit into the registers that full occupancy leaves.
constexpr int kAheadRows = sizeof(REAL) == 4 ? 4 : 1;

template <class Gradient>
NLM_FN void tile_gradients(REAL* z, REAL* sums, int count, int V, int64_t width, REAL* shared,
                           const Gradient& gradient) {
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int first = int(blockIdx.x) * kTileWords, v = first + lane * kPacket;
    Logits sum = {};
    if (v < V) {
#pragma unroll kAheadRows
        for (int r = warp; r < count; r += kTileWarps) {
            const Logits dz = gradient(r, v);
#pragma unroll
            for (int j = 0; j < kPacket; ++j) sum.at[j] += dz.at[j];
            store_packet(z + r * width + v, dz);
        }
    }
    if (sums == nullptr) return;
    store_packet(shared + warp * kTileWords + lane * kPacket, sum);
    __syncthreads();
    const int thread = int(threadIdx.x);
    if (thread >= kTileWords || first + thread >= V) return;
    REAL all = 0;
    for (int w = 0; w < kTileWarps; ++w) all += shared[w * kTileWords + thread];
    sums[int64_t(blockIdx.y) * V + first + thread] = all;
}
