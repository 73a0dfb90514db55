// The product in each step of a recurrent kernel, by one block: its columns of the weights, which
// stay with it for all steps, and all rows of its group.
//
//   out[m][r] = sum_k w[m][k] a[r][k]
//
// A thread computes four columns of TILE_ROWS rows over every splits-th k; the sums of the `splits`
// threads of a tile are added up in their order. Of each k a warp reads 16 bytes of weights and
// TILE_ROWS numbers a lane from shared memory for 4 TILE_ROWS multiply-adds: at 10 rows 1.4 times
// the time of the multiply-adds alone. Rows come from the second-level cache, 16 bytes a copy, the
// next chunk of k while one is computed. Weights beyond `kept` do not fit into shared memory and
// come from the second-level cache, too.
#pragma once

#include "common/cuda.h"

constexpr int kThreads = 256;
constexpr int kTileRows = TILE_ROWS;
constexpr int kCopy = 16 / int(sizeof(REAL));  // numbers of a copy

// Depths are rounded up to it: for both dtypes whole copies.
constexpr int kDepthGrain = 4;
NLM_FN int padded_depth(int64_t depth) {
    return int((depth + kDepthGrain - 1) / kDepthGrain) * kDepthGrain;
}

struct alignas(16) Four {
    REAL v[4];
};

// How a block divides a product; what pynlm/cuda/recurrent.py plans.
struct Product {
    int columns;    // of this block
    int depth;      // padded; so long are the operand's rows
    int pass_rows;  // rows computed at once
    int splits;
    int chunk;    // depth that is staged at once
    int kept;     // depth of the weights in shared memory: whole chunks
    REAL* near;   // [groups of columns][kept][4], shared
    REAL* far;    // [groups][depth - kept][4], global
    REAL* space;  // shared: two chunks of rows, then the sums

    NLM_FN int groups() const { return (columns + 3) / 4; }
    NLM_FN int stride() const { return chunk + kCopy; }  // of staged rows
    NLM_FN int apart() const { return splits | 1; }      // odd: banks differ
    NLM_FN Four* weights(int group, int k) const {
        REAL* const p = k < kept
                            ? near + (int64_t(group) * kept + k) * 4
                            : far + (int64_t(group) * (depth - kept) + (k - kept)) * 4;
        return reinterpret_cast<Four*>(p);
    }
    // Result of column m and row r of the pass.
    NLM_FN REAL& at(int m, int r) const { return space[(m * pass_rows + r) * apart()]; }
};

// `columns` of at most `most` in a block. Its weights begin at `near` in shared memory, which moves
// past them; what of them is not kept there stands in the block's part of `far`. The caller gives
// it its space.
NLM_FN Product product_of(int columns, int most, int64_t depth, int pass_rows, int splits, int chunk,
                          int kept, REAL* far, REAL*& near) {
    const int groups = (most + 3) / 4, padded = padded_depth(depth);
    const int64_t block = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    REAL* const own = far + block * groups * (padded - kept) * 4;
    const Product product{columns, padded, pass_rows, splits, chunk, kept, near, own, nullptr};
    near += groups * kept * 4;
    return product;
}

// The block's weights, weight(m, k), m < columns, k < depth without its padding. kAlong: values
// with neighbouring k are neighbours in memory, else those with neighbouring m.
template <bool kAlong, class Weight>
NLM_FN void pack(const Product& p, int depth, const Weight& weight) {
    const int columns = p.groups() * 4;
    for (int i = int(threadIdx.x); i < columns * p.depth; i += kThreads) {
        const int m = kAlong ? i / p.depth : i % columns, k = kAlong ? i % p.depth : i / columns;
        const bool there = m < p.columns && k < depth;
        p.weights(m / 4, k)->v[m % 4] = there ? weight(m, k) : REAL(0);
    }
    __syncthreads();
}

// Copies columns [k, k + chunk) of `rows` rows of a [.., depth] to `to`.
NLM_FN void stage(const Product& p, REAL* to, const REAL* a, int rows, int k) {
    const int count = p.depth - k < p.chunk ? p.depth - k : p.chunk;
    const int lane = int(threadIdx.x) % kWarp;
    for (int r = int(threadIdx.x) / kWarp; r < rows; r += kThreads / kWarp)
        for (int i = lane * kCopy; i < count; i += kWarp * kCopy)
            nlm_copy16(to + r * p.stride() + i, a + int64_t(r) * p.depth + k + i);
}

// deliver(first, count) once for each pass of rows: p.at(m, r) are results of rows first + r.
// The block's threads have all arrived before it and wait for each other after it.
template <class Deliver>
NLM_FN void multiply(const Product& p, const REAL* a, int rows, const Deliver& deliver) {
    if (p.columns == 0) {  // a block beyond the last unit
        deliver(0, rows);
        return;
    }
    const int groups = p.groups(), tile = int(threadIdx.x) / p.splits;
    const int split = int(threadIdx.x) % p.splits;
    const int group = tile % groups, row = tile / groups * kTileRows;
    for (int first = 0; first < rows; first += p.pass_rows) {
        const int count = rows - first < p.pass_rows ? rows - first : p.pass_rows;
        const REAL* const from = a + int64_t(first) * p.depth;
        const bool works = row < count;
        REAL sum[kTileRows][4];
#pragma unroll
        for (int r = 0; r < kTileRows; ++r)
            for (int m = 0; m < 4; ++m) sum[r][m] = 0;
        stage(p, p.space, from, count, 0);
        nlm_copy_commit();
        int now = 0;
        for (int k0 = 0; k0 < p.depth; k0 += p.chunk, now ^= 1) {
            REAL* const staged = p.space + now * p.pass_rows * p.stride();
            if (k0 + p.chunk < p.depth)
                stage(p, p.space + (now ^ 1) * p.pass_rows * p.stride(), from, count, k0 + p.chunk);
            nlm_copy_commit();
            nlm_copy_wait<1>();
            __syncthreads();
            if (works) {
                const int end = p.depth - k0 < p.chunk ? p.depth - k0 : p.chunk;
                const Four* const w = p.weights(group, k0);
                const REAL* const x = staged + row * p.stride();
                const int stride = p.stride(), splits = p.splits;
#pragma unroll 4
                for (int k = split; k < end; k += splits) {
                    const Four columns = w[k];
#pragma unroll
                    for (int r = 0; r < kTileRows; ++r) {
                        const REAL value = x[r * stride + k];
#pragma unroll
                        for (int m = 0; m < 4; ++m) sum[r][m] += columns.v[m] * value;
                    }
                }
            }
            __syncthreads();
        }
        if (works) {
#pragma unroll
            for (int r = 0; r < kTileRows; ++r)
#pragma unroll
                for (int m = 0; m < 4; ++m) (&p.at(group * 4 + m, row + r))[split] = sum[r][m];
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
