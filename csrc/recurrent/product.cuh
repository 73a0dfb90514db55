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
// come from the second-level cache, 16 bytes a copy, the next chunks of k while one is computed.
// A worker keeps the weights of its first HELD steps in registers, over all steps of the sequence:
// these cost no bandwidth, and the register file is as large as shared memory, which has those of
// the next `kept` numbers of the depth. What fits into neither comes from the second-level cache at
// each step.
#pragma once

#include "common/cuda.h"
#if defined(TF32) || defined(BF16) || defined(FP16)
#define NLM_TENSOR_CORES
#include "common/mma.h"
#endif

#if !defined(HELD)
#define HELD 0
#endif

constexpr int kThreads = 256;
constexpr int kTileRows = TILE_ROWS;

#if defined(NLM_TENSOR_CORES)
constexpr int kWorkers = kThreads / kWarp;
constexpr int kGroup = 16;
constexpr int kStep = kStepWords * kPerWord;
constexpr int kDepthGrain = kStep;
constexpr int kUnroll = HELD > 0 ? 2 : 4;
#else
typedef REAL Operand;
NLM_FN Operand to_operand(REAL value) { return value; }
constexpr int kWorkers = kThreads;
constexpr int kFours = TILE_FOURS;  // of columns
constexpr int kGroup = 4 * kFours;
constexpr int kStep = 1;
constexpr int kDepthGrain = 4 * kFours;
constexpr int kUnroll = sizeof(REAL) == 8 || kFours > 1 || HELD > 0 ? 2 : 4;  // as registers allow
struct alignas(16) Four {
    REAL v[4];
};
// Where in a step's columns those of a four stand: such that eight neighbouring lanes, at
// neighbouring k, read from different banks.
NLM_FN int four_at(int four, int k) { return kFours == 2 ? four ^ (k >> 2 & 1) : four; }
#endif
constexpr int kSegment = 8;  // steps of a worker in a chunk where weights are held in registers
constexpr int kStages = 3;   // chunks of rows: one is computed while the others come
constexpr int kCopy = 16 / int(sizeof(Operand));                // numbers of a copy
constexpr int kOperands = int(sizeof(REAL) / sizeof(Operand));  // in the place of one REAL

// Depths are rounded up to whole copies and steps.
NLM_FN int padded_depth(int64_t depth) {
    return int((depth + kDepthGrain - 1) / kDepthGrain) * kDepthGrain;
}

// How a block divides a product; what pynlm/cuda/division.py plans.
struct Product {
    int columns;    // of this block
    int depth;      // padded
    int pass_rows;  // rows computed at once
    int splits;
    int chunk;      // depth that is staged at once
    int held;       // depth of the weights in registers, the first of all: whole chunks
    int kept;       // depth of the weights in shared memory, the next: whole chunks
    int across;     // numbers of an operand's row
    Operand* near;  // [groups][kept / kStep][kGroup kStep], shared
    Operand* far;   // global: of the depth in registers, from where they are loaded once, and of
                    // the rest, each [groups][.. / kStep][kGroup kStep]
    REAL* space;    // shared: kStages chunks of rows, and the sums

    NLM_FN int groups() const { return (columns + kGroup - 1) / kGroup; }
    // Groups computed at once. Where they are all, the sums replace the rows.
    NLM_FN int pass_groups() const { return kWorkers / splits / (pass_rows / kTileRows); }
    NLM_FN int stride() const { return chunk + kCopy; }  // of staged rows
    NLM_FN Operand* staged(int which) const {
        return reinterpret_cast<Operand*>(space) + which * pass_rows * stride();
    }
    NLM_FN int apart() const { return splits | 1; }  // of sums; odd: banks differ
    NLM_FN REAL* sums() const {
        return groups() <= pass_groups() ? space
                                         : space + kStages * pass_rows * stride() / kOperands;
    }
    // Result of column m and row r of the pass.
    NLM_FN REAL& at(int m, int r) const { return sums()[(m * pass_rows + r) * apart()]; }
    // Weights of a group at step k / kStep; for one group and place those of later steps follow.
    NLM_FN Operand* weights(int group, int k) const {
        if (k < held) return far + (int64_t(group) * held + k) * kGroup;
        k -= held;
        if (k < kept) return near + (int64_t(group) * kept + k) * kGroup;
        const int rest = depth - held - kept;
        return far + (int64_t(groups()) * held + int64_t(group) * rest + (k - kept)) * kGroup;
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
// it its space. steps: of a worker, with weights in registers, as far as the depth goes.
NLM_FN Product product_of(int columns, int most, int64_t depth, int pass_rows, int splits,
                          int chunk, int kept, REAL* far, REAL*& near, int steps = 0) {
    const int groups = (most + kGroup - 1) / kGroup, padded = padded_depth(depth);
    const int64_t block = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    Operand* const own =
        reinterpret_cast<Operand*>(far) + block * groups * kGroup * (padded - kept);
    const int segments = steps > 0 ? padded / chunk : 0;
    const int held = (segments < steps / kSegment ? segments : steps / kSegment) * chunk;
    const Product product{columns, padded, pass_rows,
                          splits,  chunk,  held,
                          kept,    padded, reinterpret_cast<Operand*>(near),
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
            nlm_copy16(to + r * p.stride() + i, a + int64_t(r) * p.across + k + i);
}

// What a worker multiplies rows by at one step.
#if defined(NLM_TENSOR_CORES)
typedef LeftFragment Weights;
NLM_FN Weights weights_at(const Operand* w, int step) {
    const int lane = int(threadIdx.x) % kWarp;
    return (reinterpret_cast<const LeftFragment*>(w) + lane)[step * kWarp];
}
#else
struct Weights {
    Four four[kFours];
};
NLM_FN Weights weights_at(const Operand* w, int k) {
    Weights found;
#pragma unroll
    for (int f = 0; f < kFours; ++f)
        found.four[f] = reinterpret_cast<const Four*>(w)[k * kFours + four_at(f, k)];
    return found;
}
#endif

// Where a worker stands in its block's product.
struct Place {
    int split, group, row;  // of the groups and rows that are computed at once
    NLM_FN explicit Place(const Product& p) {
        const int worker = int(threadIdx.x) / (kThreads / kWorkers);
        const int at_once = p.pass_groups() < p.groups() ? p.pass_groups() : p.groups();
        split = worker % p.splits;
        group = at_once > 0 ? worker / p.splits % at_once : 0;
        row = at_once > 0 ? worker / p.splits / at_once * kTileRows : 0;
    }
};

// A worker's weights of its first steps, in registers: only numbers known to the compiler may index
// them.
template <int kSteps>
struct Held {
    Weights of[kSteps];
    NLM_FN explicit Held(const Product& p) {
        const Place place(p);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
            of[i] = i / kSegment * p.chunk < p.held && p.columns > 0
                        ? weights_at(p.weights(place.group, 0), place.split + i * p.splits)
                        : Weights{};
        }
    }
};
template <>
struct Held<0> {
    NLM_FN explicit Held(const Product&) {}
};

// A worker's sums of a tile.
#if defined(NLM_TENSOR_CORES)
struct Tile {
    static_assert(kTileRows % 8 == 0);
    REAL sum[kTileRows / 8][4];

    // x: the tile's first staged row, from step `s` on
    NLM_FN void add(const Weights& a, const Operand* x, int stride, int s) {
        const int lane = int(threadIdx.x) % kWarp, words = stride / kPerWord;
        const uint32_t* const right =
            reinterpret_cast<const uint32_t*>(x) + lane / 4 * words + lane % 4 + s * kStepWords;
#pragma unroll
        for (int n = 0; n < kTileRows / 8; ++n) {
            const uint32_t b[2] = {right[n * 8 * words], right[n * 8 * words + 4]};
            mma(sum[n], a, b);
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

    NLM_FN void add(const Weights& at, const Operand* x, int stride, int k) {
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) {
            const REAL value = x[r * stride + k];
#pragma unroll
            for (int m = 0; m < kGroup; ++m) sum[r][m] += at.four[m / 4].v[m % 4] * value;
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
template <int kSteps, class Deliver>
NLM_FN void multiply(const Product& p, const Held<kSteps>& held, const Operand* a, int rows,
                     const Deliver& deliver) {
    if (p.columns == 0) {  // a block beyond the last unit
        deliver(0, rows);
        return;
    }
    const Place place(p);
    const int at_once = p.pass_groups() < p.groups() ? p.pass_groups() : p.groups();
    for (int first = 0; first < rows; first += p.pass_rows) {
        const int count = rows - first < p.pass_rows ? rows - first : p.pass_rows;
        const Operand* const from = a + int64_t(first) * p.across;
        for (int group0 = 0; group0 < p.groups(); group0 += at_once) {
            const int group = group0 + place.group;
            const bool works = place.row < count && group < p.groups();
            Tile tile = {};
            int coming = 0, stage_in = 0, stage_out = 0;  // the next chunk to copy, and to compute
            const auto copy = [&] {
                if (coming < p.depth) {
                    stage(p, p.staged(stage_in), from, count, coming);
                    coming += p.chunk;
                    stage_in = stage_in + 1 < kStages ? stage_in + 1 : 0;
                }
                nlm_copy_commit();
            };
            // add(x, k): of the chunk at k
            const auto compute = [&](int k, const auto& add) {
                nlm_copy_wait<kStages - 2>();
                __syncthreads();
                copy();  // to where the chunk before this one was
                if (works) add(p.staged(stage_out) + place.row * p.stride(), k);
                stage_out = stage_out + 1 < kStages ? stage_out + 1 : 0;
            };
#pragma unroll
            for (int i = 0; i < kStages - 1; ++i) copy();
            if constexpr (kSteps > 0) {
#pragma unroll
                for (int s = 0; s < kSteps / kSegment; ++s) {
                    if (s * p.chunk >= p.held) break;
                    compute(s * p.chunk, [&](const Operand* x, int) {
#pragma unroll
                        for (int i = 0; i < kSegment; ++i)
                            tile.add(held.of[s * kSegment + i], x, p.stride(),
                                     place.split + i * p.splits);
                    });
                }
            }
            for (int k = p.held; k < p.depth; k += p.chunk)
                compute(k, [&](const Operand* x, int at) {
                    const Operand* const w = p.weights(group, at);
                    const int steps = (p.depth - at < p.chunk ? p.depth - at : p.chunk) / kStep;
#pragma unroll kUnroll
                    for (int s = place.split; s < steps; s += p.splits)
                        tile.add(weights_at(w, s), x, p.stride(), s);
                });
            __syncthreads();
            if (works) tile.give(p, group * kGroup, place.row, place.split);
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
// All weights in shared memory and the second-level cache.
template <class Deliver>
NLM_FN void multiply(const Product& p, const Operand* a, int rows, const Deliver& deliver) {
    multiply(p, Held<0>(p), a, rows, deliver);
}
