// GPU form of what variant.h describes, for the general kernels of all cells.
#pragma once

#include "recurrent/sequence.cuh"
#include "recurrent/norm.cuh"
#include "common/philox.h"

// sites of philox.h
constexpr uint32_t kZoneoutH = 10, kZoneoutC = 11;

// Draws d, the share of the previous state, anew in each pass.
struct Zoneout {
    REAL p;
    uint32_t threshold, purpose;
    int sample;
    uint32_t seed, step, time0;
    const int32_t* rows;

    NLM_FN REAL share(int64_t t, int64_t row, int64_t unit) const {
        if (p == 0 || !sample) return p;
        const uint32_t id = uint32_t(rows != nullptr ? rows[row] : row);
        const PhiloxWords words =
            philox(seed, step, {{uint32_t(unit >> 2), id, time0 + uint32_t(t), purpose}});
        uint32_t word = words.word[0];  // no array in local memory
        for (int i = 1; i < 4; ++i)
            if ((unit & 3) == i) word = words.word[i];
        return word < threshold ? REAL(1) : REAL(0);
    }
    // s_t = d s_{t-1} + (1 - d) s'
    NLM_FN REAL mix(int64_t t, int64_t row, int64_t unit, REAL previous, REAL fresh) const {
        if (p == 0) return fresh;
        const REAL d = share(t, row, unit);
        return d * previous + (1 - d) * fresh;
    }
    // Takes from the gradient of s_t the part that flows past the cell, to s_{t-1}.
    NLM_FN REAL past(int64_t t, int64_t row, int64_t unit, REAL& gradient) const {
        const REAL part = p == 0 ? REAL(0) : share(t, row, unit) * gradient;
        gradient -= part;
        return part;
    }
};

// The gradient of the new state before clipping; y: the state, on the bound (infinite for none) if
// it was clipped.
NLM_FN REAL unclip(REAL bound, REAL y, REAL dh) { return y >= bound || y <= -bound ? REAL(0) : dh; }

// Layer norm. Values of a row stand with all blocks of its group: each reduces its own to two
// numbers, and after a barrier all blocks add up those of all in the same order.
// Numbers of shared memory for so many rows' totals; what follows stays aligned.
NLM_FN int totals_of(int rows) { return (rows + 1) / 2 * 4; }

struct RowNorm {
    REAL* partials;  // [B][blocks][2]: two such, because a block may be a phase ahead
    REAL* totals;    // [rows][2], shared
    Span group;
    int64_t batch;

    NLM_FN REAL* partial(int which, int64_t row, int block) const {
        return partials + (((which * batch + row) * gridDim.x) + block) * 2;
    }
    NLM_FN REAL total(int64_t row, int which) const {
        return totals[(row - group.begin) * 2 + which];
    }

    // Mean of the block's `count` values of each row, and squared distances from it.
    template <class Value>
    NLM_FN void moments(int which, int begin, int end, int count, const Value& value) const {
        const int lane = int(threadIdx.x) % kWarp;
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, squares = 0;
            for (int i = lane; i < count; i += kWarp) sum += value(r, i);
            const REAL mean = warp_sum(sum) / REAL(count > 0 ? count : 1);
            for (int i = lane; i < count; i += kWarp) {
                const REAL d = value(r, i) - mean;
                squares += d * d;
            }
            squares = warp_sum(squares);
            if (lane == 0) {
                partial(which, r, int(blockIdx.x))[0] = mean;
                partial(which, r, int(blockIdx.x))[1] = squares;
            }
        }
    }
    // totals: mean and 1 / sqrt(var + 1e-5) of rows over all blocks, of which block b has
    // count(b) values; also to rstd [B] if not null.
    template <class Count>
    NLM_FN void merge_moments(int which, int begin, int end, REAL* rstd, const Count& count) const {
        const int lane = int(threadIdx.x) % kWarp, blocks = int(gridDim.x);
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, squares = 0, n = 0;
            for (int b = lane; b < blocks; b += kWarp) {
                n += REAL(count(b));
                sum += REAL(count(b)) * nlm_load_global(partial(which, r, b));
            }
            n = warp_sum(n);
            const REAL mean = warp_sum(sum) / n;
            for (int b = lane; b < blocks; b += kWarp) {
                const REAL d = nlm_load_global(partial(which, r, b)) - mean;
                squares += nlm_load_global(partial(which, r, b) + 1) + REAL(count(b)) * d * d;
            }
            squares = warp_sum(squares);
            if (lane == 0) {
                const REAL scale = REAL(1 / sqrt(double(squares / n) + kNormEpsilon));
                totals[(r - group.begin) * 2] = mean;
                totals[(r - group.begin) * 2 + 1] = scale;
                if (rstd != nullptr && blockIdx.x == 0) rstd[r] = scale;
            }
        }
        __syncthreads();
    }

    // The block's sums over its `count` values of a row of d and of d times along.
    template <class Value>
    NLM_FN void sums(int which, int begin, int end, int count, const Value& value) const {
        const int lane = int(threadIdx.x) % kWarp;
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, product = 0;
            for (int i = lane; i < count; i += kWarp) {
                REAL d, along;
                value(r, i, d, along);
                sum += d;
                product += d * along;
            }
            sum = warp_sum(sum);
            product = warp_sum(product);
            if (lane == 0) {
                partial(which, r, int(blockIdx.x))[0] = sum;
                partial(which, r, int(blockIdx.x))[1] = product;
            }
        }
    }
    // totals: means over the n values of all blocks.
    NLM_FN void merge_sums(int which, int begin, int end, int64_t n) const {
        const int lane = int(threadIdx.x) % kWarp, blocks = int(gridDim.x);
        for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kThreads / kWarp) {
            REAL sum = 0, product = 0;
            for (int b = lane; b < blocks; b += kWarp) {
                sum += nlm_load_global(partial(which, r, b));
                product += nlm_load_global(partial(which, r, b) + 1);
            }
            sum = warp_sum(sum);
            product = warp_sum(product);
            if (lane == 0) {
                totals[(r - group.begin) * 2] = sum / REAL(n);
                totals[(r - group.begin) * 2 + 1] = product / REAL(n);
            }
        }
        __syncthreads();
    }
    // The gradient of v from d, that of `hat` = N(v), after merge_sums.
    NLM_FN REAL backward(int64_t row, REAL d, REAL hat, REAL rstd) const {
        return (d - total(row, 0) - hat * total(row, 1)) * rstd;
    }
};
