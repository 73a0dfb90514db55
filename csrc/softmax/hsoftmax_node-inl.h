// What the CUDA kernels of the hierarchical softmax share: steps in the tree, dot products with
// rows, and a node's distribution.
#include "common/cuda.h"
#include "common/packet.h"

struct Tree {
    const REAL* w;
    const REAL* b;  // may be null
    const int32_t* first;
    int64_t H;
    int32_t V, M;
};

// A node and its rows, and the child that was taken.
struct Node {
    int32_t number, row, rows, child;
};

// Node m's rows; false if they are not in w.
NLM_FN bool node_rows(const Tree& t, int32_t m, Node& node) {
    const int32_t first = t.first[m];
    node.number = m;
    node.row = first - m;
    node.rows = t.first[m + 1] - first - 1;
    return node.row >= 0 && node.rows >= 1 && node.rows <= t.V - 1 - node.row;
}

enum Step { kEnd, kNode, kFault };

// A token as the entry to begin at; -1, which leads nowhere, if it is out of range.
NLM_FN int64_t entry_of(const Tree& t, int32_t token) {
    return token >= 0 && token < t.V ? token : -1;
}

// From `entry` to its parent; kEnd at the root.
NLM_FN Step step_up(const Tree& t, const int32_t* parent, int64_t& entry, Node& node) {
    if (entry < 0) return kFault;
    if (entry == t.V || t.V == 1) return kEnd;
    const int32_t m = parent[2 * entry];
    node.child = parent[2 * entry + 1];
    // numbers fall on the way up, so that it ends
    if (m < 0 || m >= (entry < t.V ? t.M : entry - t.V) || !node_rows(t, m, node) ||
        node.child < 0 || node.child > node.rows)
        return kFault;
    entry = t.V + m;
    return kNode;
}

NLM_FN double nan_of_double() { return nan(""); }

// z[i] = h w[row[i]]^T for some i from `first`, up to kRows of `count`, by a warp. Partial sums
// are halved among lanes, so that all rows together take little more than one row's.
template <int kLanes, int kRows>
NLM_FN void dot_some(const Tree& t, const REAL* h, const int32_t* row, int first, int count,
                     REAL* z) {
    const int lane = int(threadIdx.x) % kWarp;
    const REAL* w[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k)
        w[k] = t.w + row[first + k < count ? first + k : count - 1] * t.H;
    REAL sum[kRows] = {};
#pragma unroll 1
    for (int64_t c = lane * kLanes; c < t.H; c += kWarp * kLanes) {
        const auto own = load_packet<REAL, kLanes>(h + c);
        Packet<REAL, kLanes> other[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) other[k] = load_packet<REAL, kLanes>(w[k] + c);
#pragma unroll
        for (int k = 0; k < kRows; ++k)
            for (int l = 0; l < kLanes; ++l) sum[k] += own.at[l] * other[k].at[l];
    }
    int lanes = kWarp / 2;
#pragma unroll
    for (int half = kRows / 2; half > 0; half /= 2, lanes /= 2) {
        const bool upper = (lane & lanes) != 0;
#pragma unroll
        for (int k = 0; k < half; ++k) {
            const REAL give = upper ? sum[k] : sum[k + half];
            const REAL keep = upper ? sum[k + half] : sum[k];
            sum[k] = keep + __shfl_xor_sync(kAllLanes, give, lanes);
        }
    }
    for (; lanes > 0; lanes /= 2) sum[0] += __shfl_xor_sync(kAllLanes, sum[0], lanes);
    constexpr int kShare = kWarp / kRows;  // lanes that have the same row's
    const int mine = first + lane / kShare;
    if (lane % kShare == 0 && mine < count) z[mine] = sum[0];
}

// z[i] = h w[row[i]]^T for i < count, by a warp, which may read z after it. Not inlined into each
// of its uses.
template <int kLanes>
NLM_FN void dot_rows(const Tree& t, const REAL* h, const int32_t* row, int count, REAL* z) {
    int first = 0;
    for (; count - first > 4; first += 8) dot_some<kLanes, 8>(t, h, row, first, count, z);
    if (first < count) dot_some<kLanes, 4>(t, h, row, first, count, z);
    __syncwarp();
}

constexpr int kWide = 32;  // rows of a node that a warp takes together; fewer are a lane's

// Of a node with logits z [rows] and 0 for child 0: -log p(child), by a warp, or by a thread; with
// `gradients` those of weight times it, in place of z. The other children are summed apart: what
// is near 0 keeps its digits. A warp may read z before and after it.
template <bool kByWarp>
NLM_FN double node_loss(REAL* z, int rows, int child, REAL weight, bool gradients) {
    const int first = kByWarp ? int(threadIdx.x) % kWarp : 0, step = kByWarp ? kWarp : 1;
    const double chosen = child > 0 ? double(z[child - 1]) : 0.0;
    REAL top = 0;
    for (int r = first; r < rows; r += step) top = z[r] > top ? z[r] : top;
    if (kByWarp) top = warp_max(top);
    double others = 0;
    for (int r = first; r < rows; r += step)
        if (r != child - 1) others += double(exp(z[r] - top));
    if (kByWarp) others = warp_sum(others);
    if (child > 0) others += exp(-double(top));
    const double own = exp(chosen - double(top)), sum = own + others;
    if (gradients) {
        const REAL scale = REAL(double(weight) / sum);
        for (int r = first; r < rows; r += step)
            z[r] =
                r == child - 1 ? REAL(-double(weight) * (others / sum)) : exp(z[r] - top) * scale;
        if (kByWarp) __syncwarp();
    }
    return own >= others ? log1p(others / own) : (double(top) - chosen) + log(sum);
}
