// The product in each step of a recurrent kernel, by one block: its columns of the weights, which
// stay with it for all steps, and all rows of its group.
//
//   out[m][r] = sum_k w[m][k] a[r][k]
//
// Workers compute tiles of kGroup columns by TILE_ROWS rows over every splits-th step of k; the
// sums of the `splits` workers of a tile are added up in their order. Without tensor cores a worker
// is a thread and a step one k: a warp reads kGroup weights and TILE_ROWS numbers a lane from
// shared memory for kGroup TILE_ROWS multiply-adds, at 10 rows in 1.4 times the time of these for
// four columns and 0.9 times for eight (TILE_FOURS = 2), which need more splits. With TF32, BF16 or
// FP16 (mma.h) a worker is a warp and a step eight words; reading shared memory bounds it. Rows
// come from the second-level cache, 16 bytes a copy, the next chunk of k while one is computed.
// Weights beyond `kept` do not fit into shared memory and come from the second-level cache, too.
#pragma once

#include "common/cuda.h"
#if defined(TF32) || defined(BF16) || defined(FP16)
#define NLM_TENSOR_CORES
#include "common/mma.h"
#endif

constexpr int kThreads = 256;
constexpr int kTileRows = TILE_ROWS;

#if defined(NLM_TENSOR_CORES)
constexpr int kWorkers = kThreads / kWarp;
constexpr int kGroup = 16;
constexpr int kStep = kStepWords * kPerWord;
constexpr int kDepthGrain = kStep;
#else
typedef REAL Operand;
NLM_FN Operand to_operand(REAL value) { return value; }
constexpr int kWorkers = kThreads;
constexpr int kFours = TILE_FOURS;  // of columns
constexpr int kGroup = 4 * kFours;
constexpr int kStep = 1;
constexpr int kDepthGrain = 4 * kFours;
constexpr int kUnroll = sizeof(REAL) == 8 || kFours > 1 ? 2 : 4;  // as registers allow
struct alignas(16) Four {
    REAL v[4];
};
// Where in a step's columns those of a four stand: such that eight neighbouring lanes, at
// neighbouring k, read from different banks.
NLM_FN int four_at(int four, int k) { return kFours == 2 ? four ^ (k >> 2 & 1) : four; }
#endif
constexpr int kCopy = 16 / int(sizeof(Operand));                // numbers of a copy
constexpr int kOperands = int(sizeof(REAL) / sizeof(Operand));  // in the place of one REAL

// Depths are rounded up to whole copies and steps.
NLM_FN int padded_depth(int64_t depth) {
    return int((depth + kDepthGrain - 1) / kDepthGrain) * kDepthGrain;
}

// How a block divides a product; what pynlm/cuda/recurrent.py plans.
struct Product {
    int columns;    // of this block
    int depth;      // padded; so long are the operand's rows
    int pass_rows;  // rows computed at once
    int splits;
    int chunk;      // depth that is staged at once
    int kept;       // depth of the weights in shared memory: whole chunks
    Operand* near;  // [groups][kept / kStep][kGroup kStep], shared
    Operand* far;   // [groups][(depth - kept) / kStep][kGroup kStep], global
    REAL* space;    // shared: two chunks of rows, and the sums

    NLM_FN int groups() const { return (columns + kGroup - 1) / kGroup; }
    // Groups computed at once. Where they are all, the sums replace the rows.
    NLM_FN int pass_groups() const { return kWorkers / splits / (pass_rows / kTileRows); }
    NLM_FN int stride() const { return chunk + kCopy; }  // of staged rows
    NLM_FN Operand* staged(int which) const {
        return reinterpret_cast<Operand*>(space) + which * pass_rows * stride();
    }
    NLM_FN int apart() const { return splits | 1; }  // of sums; odd: banks differ
    NLM_FN REAL* sums() const {
        return groups() <= pass_groups() ? space : space + 2 * pass_rows * stride() / kOperands;
    }
    // Result of column m and row r of the pass.
    NLM_FN REAL& at(int m, int r) const { return sums()[(m * pass_rows + r) * apart()]; }
    // Weights of a group at step k / kStep; for one group and either side of `kept` those of later
    // steps follow.
    NLM_FN Operand* weights(int group, int k) const {
        return k < kept ? near + (int64_t(group) * kept + k) * kGroup
                        : far + (int64_t(group) * (depth - kept) + (k - kept)) * kGroup;
    }
    NLM_FN void put(int m, int k, REAL value) const {
        Operand* const step = weights(m / kGroup, k / kStep * kStep);
        const int row = m % kGroup;
#if defined(NLM_TENSOR_CORES)
        const int word = k % kStep / kPerWord, lane = row % 8 * 4 + word % 4;
        step[(lane * 4 + row / 8 + word / 4 * 2) * kPerWord + k % kPerWord] = to_operand(value);
#else
        step[four_at(row / 4, k) * 4 + row % 4] = value;
#endif
    }
};

// `columns` of at most `most` in a block. Its weights begin at `near` in shared memory, which moves
// past them; what of them is not kept there stands in the block's part of `far`. The caller gives
// it its space.
NLM_FN Product product_of(int columns, int most, int64_t depth, int pass_rows, int splits,
                          int chunk, int kept, REAL* far, REAL*& near) {
    const int groups = (most + kGroup - 1) / kGroup, padded = padded_depth(depth);
    const int64_t block = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    Operand* const own =
        reinterpret_cast<Operand*>(far) + block * groups * kGroup * (padded - kept);
    const Product product{
        columns, padded, pass_rows, splits, chunk, kept, reinterpret_cast<Operand*>(near),
        own,     nullptr};
    near += groups * kGroup * kept / kOperands;
    return product;
}

// The block's weights, weight(m, k), m < columns, k < depth without its padding. kAlong: values
// with neighbouring k are neighbours in memory, else those with neighbouring m.
template <bool kAlong, class Weight>
NLM_FN void pack(const Product& p, int depth, const Weight& weight) {
    const int columns = p.groups() * kGroup;
    for (int i = int(threadIdx.x); i < columns * p.depth; i += kThreads) {
        const int m = kAlong ? i / p.depth : i % columns, k = kAlong ? i % p.depth : i / columns;
        p.put(m, k, m < p.columns && k < depth ? weight(m, k) : REAL(0));
    }
    __syncthreads();
}

// Copies columns [k, k + chunk) of `rows` rows of a [.., depth] to `to`.
NLM_FN void stage(const Product& p, Operand* to, const Operand* a, int rows, int k) {
    const int count = p.depth - k < p.chunk ? p.depth - k : p.chunk;
    const int lane = int(threadIdx.x) % kWarp;
    for (int r = int(threadIdx.x) / kWarp; r < rows; r += kThreads / kWarp)
        for (int i = lane * kCopy; i < count; i += kWarp * kCopy)
            nlm_copy16(to + r * p.stride() + i, a + int64_t(r) * p.depth + k + i);
}

// A worker's sums of a tile.
#if defined(NLM_TENSOR_CORES)
struct Tile {
    static_assert(kTileRows % 8 == 0);
    REAL sum[kTileRows / 8][4];

    // Adds steps split, split + splits, ... of `count` numbers; x: the tile's first staged row.
    NLM_FN void add(const Operand* w, const Operand* x, int stride, int count, int split,
                    int splits) {
        const int lane = int(threadIdx.x) % kWarp, words = stride / kPerWord;
        const LeftFragment* const left = reinterpret_cast<const LeftFragment*>(w) + lane;
        const uint32_t* const right =
            reinterpret_cast<const uint32_t*>(x) + lane / 4 * words + lane % 4;
#pragma unroll 4
        for (int s = split; s < count / kStep; s += splits) {
            const LeftFragment a = left[s * kWarp];
#pragma unroll
            for (int n = 0; n < kTileRows / 8; ++n) {
                const uint32_t* const at = right + n * 8 * words + s * kStepWords;
                const uint32_t b[2] = {at[0], at[4]};
                mma(sum[n], a, b);
            }
        }
    }
    NLM_FN void give(const Product& p, int m, int row, int split) const {
        const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
        for (int n = 0; n < kTileRows / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                (&p.at(m + lane / 4 + i / 2 * 8, row + n * 8 + lane % 4 * 2 + i % 2))[split] =
                    sum[n][i];
    }
};
#else
struct Tile {
    REAL sum[kTileRows][kGroup];

    // w, x: at a multiple of 8 of k
    NLM_FN void add(const Operand* w, const Operand* x, int stride, int count, int split,
                    int splits) {
        const Four* const columns = reinterpret_cast<const Four*>(w);
#pragma unroll kUnroll
        for (int k = split; k < count; k += splits) {
            Four at[kFours];
#pragma unroll
            for (int f = 0; f < kFours; ++f) at[f] = columns[k * kFours + four_at(f, k)];
#pragma unroll
            for (int r = 0; r < kTileRows; ++r) {
                const REAL value = x[r * stride + k];
#pragma unroll
                for (int m = 0; m < kGroup; ++m) sum[r][m] += at[m / 4].v[m % 4] * value;
            }
        }
    }
    NLM_FN void give(const Product& p, int m, int row, int split) const {
#pragma unroll
        for (int r = 0; r < kTileRows; ++r)
#pragma unroll
            for (int i = 0; i < kGroup; ++i) (&p.at(m + i, row + r))[split] = sum[r][i];
    }
};
#endif

// deliver(first, count) once for each pass of rows: p.at(m, r) are results of rows first + r.
// The block's threads have all arrived before it and wait for each other after it.
template <class Deliver>
NLM_FN void multiply(const Product& p, const Operand* a, int rows, const Deliver& deliver) {
    if (p.columns == 0) {  // a block beyond the last unit
        deliver(0, rows);
        return;
    }
    const int worker = int(threadIdx.x) / (kThreads / kWorkers), split = worker % p.splits;
    const int at_once = p.pass_groups() < p.groups() ? p.pass_groups() : p.groups();
    const int own_group = worker / p.splits % at_once;
    const int row = worker / p.splits / at_once * kTileRows;
    for (int first = 0; first < rows; first += p.pass_rows) {
        const int count = rows - first < p.pass_rows ? rows - first : p.pass_rows;
        const Operand* const from = a + int64_t(first) * p.depth;
        for (int group0 = 0; group0 < p.groups(); group0 += at_once) {
            const int group = group0 + own_group;
            const bool works = row < count && group < p.groups();
            Tile tile = {};
            stage(p, p.staged(0), from, count, 0);
            nlm_copy_commit();
            int now = 0;
            for (int k = 0; k < p.depth; k += p.chunk, now ^= 1) {
                if (k + p.chunk < p.depth) stage(p, p.staged(now ^ 1), from, count, k + p.chunk);
                nlm_copy_commit();
                nlm_copy_wait<1>();
                __syncthreads();
                if (works)
                    tile.add(p.weights(group, k), p.staged(now) + row * p.stride(), p.stride(),
                             p.depth - k < p.chunk ? p.depth - k : p.chunk, split, p.splits);
                __syncthreads();
            }
            if (works) tile.give(p, group * kGroup, row, split);
        }
        __syncthreads();
        for (int i = int(threadIdx.x); i < p.columns * p.pass_rows; i += kThreads) {
            if (i % p.pass_rows >= count) continue;
            REAL* const sums = &p.at(0, i);
            REAL total = sums[0];
            for (int s = 1; s < p.splits; ++s) total += sums[s];
            sums[0] = total;
        }
        __syncthreads();
        deliver(first, count);
        __syncthreads();
    }
}
