// Hierarchical softmax on a GPU (contract: hsoftmax.h): what it predicts, from the root down.
#include "softmax/hsoftmax_node-inl.h"
#include "common/philox.h"

// parent [V + M, 2] of `children`, a thread a child; entries that are none are left out.
NLM_KERNEL(hsoftmax_parents, 256, int32_t* parent, const int32_t* first, const int32_t* children,
           int V, int M) {
    for (int64_t i = grid_thread(); i < V + M - 1; i += grid_threads()) {
        int low = 0;  // the node whose child it is
        for (int high = M; high - low > 1;) {
            const int middle = (low + high) / 2;
            if (first[middle] <= i)
                low = middle;
            else
                high = middle;
        }
        const int64_t entry = children[i];
        if (entry < 0 || entry >= V + M) continue;
        parent[2 * entry] = low;
        parent[2 * entry + 1] = int32_t(i) - first[low];
    }
}

// tops and log_sums [N, M] of all nodes, from logits z [N, V - 1] without bias, which is added to
// them. Moves z twice; bound by memory, in float32 by exponentials in double precision.
NLM_KERNEL(hsoftmax_norms, 256, REAL* tops, double* log_sums, REAL* z, const REAL* b,
           const int32_t* first, int64_t N, int V, int M) {
    const Tree t{nullptr, b, first, 0, V, M};
    const int lane = int(threadIdx.x) % kWarp;
    const bool any_wide = V - 1 - M >= kWide - 1;  // what all nodes have beyond a row each
    for (int64_t at = grid_thread() - lane; at < N * M; at += grid_threads()) {
        const int64_t own = at + lane;
        Node node{};
        const bool mine = own < N * M && node_rows(t, int32_t(own % M), node);
        if (mine && node.rows < kWide) {
            REAL* const logits = z + own / M * (V - 1) + node.row;
            REAL top = 0;
            for (int r = 0; r < node.rows; ++r) {
                if (b != nullptr) logits[r] += b[node.row + r];
                top = logits[r] > top ? logits[r] : top;
            }
            if (node.rows == 1) {
                tops[own] = top;
                log_sums[own] = log1p(exp(-fabs(double(logits[0]))));
            } else {
                double sum = exp(-double(top));
                for (int r = 0; r < node.rows; ++r) sum += double(exp(logits[r] - top));
                tops[own] = top;
                log_sums[own] = log(sum);
            }
        }
        if (!any_wide) continue;
        unsigned wide = __ballot_sync(kAllLanes, mine && node.rows >= kWide);
        for (; wide != 0; wide &= wide - 1) {
            const int64_t one = at + __ffs(int(wide)) - 1;
            node_rows(t, int32_t(one % M), node);
            REAL* const logits = z + one / M * (V - 1) + node.row;
            REAL top = 0;
            for (int r = lane; r < node.rows; r += kWarp) {
                if (b != nullptr) logits[r] += b[node.row + r];
                top = logits[r] > top ? logits[r] : top;
            }
            top = warp_max(top);
            double sum = 0;
            for (int r = lane; r < node.rows; r += kWarp) sum += double(exp(logits[r] - top));
            sum = warp_sum(sum) + exp(-double(top));
            if (lane == 0) {
                tops[one] = top;
                log_sums[one] = log(sum);
            }
        }
    }
}

// log_prob [N, V], a thread each, up the token's path. Reads three numbers a node, from the second-
// level cache, which bounds it.
NLM_KERNEL(hsoftmax_log_probs, 256, REAL* log_prob, const REAL* z, const REAL* tops,
           const double* log_sums, const int32_t* first, const int32_t* parent, int64_t N, int V,
           int M) {
    const Tree t{nullptr, nullptr, first, 0, V, M};
    for (int64_t i = grid_thread(); i < N * V; i += grid_threads()) {
        const int64_t n = i / V;
        int64_t entry = i % V;
        double sum = 0;
        Node node{};
        Step step;
        while ((step = step_up(t, parent, entry, node)) == kNode) {
            const double x =
                node.child > 0 ? double(z[n * (V - 1) + node.row + node.child - 1]) : 0.0;
            const int64_t at = n * M + node.number;
            sum += (x - double(tops[at])) - log_sums[at];
        }
        log_prob[i] = step == kEnd ? REAL(sum) : REAL(nan_of_double());
    }
}

// The place of token v in the order: larger log-probabilities first, NaN last, of equal ones
// smaller ids. 8 bytes in float32, 12 in float64, of which the first in `high` come first.
struct Place {
    uint64_t high;
    uint32_t low;
};
constexpr int kPlaceBytes = sizeof(REAL) + 4;

NLM_FN Place place_of(float log_p, uint32_t v) {
    const float x = log_p + 0.0f;  // no negative zero
    const uint32_t bits = *reinterpret_cast<const uint32_t*>(&x);
    const uint32_t falling = (bits >> 31) != 0 ? bits : ~bits & 0x7FFFFFFFu;
    return {uint64_t(x != x ? 0xFFFFFFFFu : falling) << 32 | v, 0};
}
NLM_FN Place place_of(double log_p, uint32_t v) {
    const double x = log_p + 0.0;
    const uint64_t bits = *reinterpret_cast<const uint64_t*>(&x);
    const uint64_t falling = (bits >> 63) != 0 ? bits : ~bits & 0x7FFFFFFFFFFFFFFFull;
    return {x != x ? ~uint64_t(0) : falling, v};
}
NLM_FN bool before(const Place& a, const Place& b) {
    return a.high != b.high ? a.high < b.high : a.low < b.low;
}
// The first `count` bytes, the others 0.
NLM_FN Place first_bytes(const Place& a, int count) {
    if (count >= 8)
        return {a.high, count >= 12
                            ? a.low
                            : (count == 8 ? 0 : a.low >> (96 - 8 * count) << (96 - 8 * count))};
    return {count == 0 ? 0 : a.high >> (64 - 8 * count) << (64 - 8 * count), 0};
}
NLM_FN uint32_t byte_at(const Place& a, int at) {
    return at < 8 ? uint32_t(a.high >> (56 - 8 * at)) % 256 : (a.low >> (88 - 8 * at)) % 256;
}

// The K first of all tokens, a block a row: byte by byte, how many have which, until those up to
// some byte are K; these are then ranked. Reads all [N, V] a few times; bound by memory.
NLM_KERNEL(hsoftmax_select, 256, REAL* log_prob, int32_t* ids, int32_t* chosen, const REAL* all,
           int64_t N, int64_t V, int64_t K) {
    constexpr int kBytes = 256, kShare = kBytes / kWarp;
    uint32_t* const counts = nlm_shared<uint32_t>();  // [2, 256]: of this byte, of the next
    uint32_t* const found = counts + 2 * kBytes;      // byte, how many are left, how many have it
    uint32_t* const taken = found + 3;
    const int thread = int(threadIdx.x);
    for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
        const REAL* const row = all + n * V;
        int32_t* const own = chosen + n * K;
        Place last{0, 0};  // of the first `known` bytes
        uint32_t left = uint32_t(K);
        int known = 0;
        counts[thread] = 0;
        if (thread == 0) *taken = 0;
        __syncthreads();
        for (bool more = true; more;) {
            uint32_t* const now = counts + known % 2 * kBytes;
            counts[(known + 1) % 2 * kBytes + thread] = 0;
            for (int64_t v = thread; v < V; v += kBytes) {
                const Place place = place_of(row[v], uint32_t(v)),
                            start = first_bytes(place, known);
                if (start.high == last.high && start.low == last.low)
                    atomicAdd(now + byte_at(place, known), 1u);
            }
            __syncthreads();
            if (thread < kWarp) {  // a lane has kShare values of the byte
                uint32_t share = 0;
                for (int i = 0; i < kShare; ++i) share += now[thread * kShare + i];
                uint32_t earlier = warp_sum_before(share);
                for (int i = 0; i < kShare; ++i) {
                    const uint32_t count = now[thread * kShare + i];
                    if (earlier < left && left <= earlier + count) {
                        found[0] = uint32_t(thread * kShare + i);
                        found[1] = left - earlier;
                        found[2] = count;
                    }
                    earlier += count;
                }
            }
            __syncthreads();
            if (known < 8)
                last.high |= uint64_t(found[0]) << (56 - 8 * known);
            else
                last.low |= found[0] << (88 - 8 * known);
            left = found[1];
            more = left != found[2] && ++known < kPlaceBytes;
        }
        // of the last byte looked at, too
        known = known < kPlaceBytes ? known + 1 : known;
        for (int64_t v = thread; v < V; v += kBytes)
            if (!before(last, first_bytes(place_of(row[v], uint32_t(v)), known)))
                own[atomicAdd(taken, 1u)] = int32_t(v);
        __syncthreads();
        for (int64_t i = thread; i < K; i += kBytes) {
            const int32_t v = own[i];
            const Place place = place_of(row[v], uint32_t(v));
            int64_t rank = 0;
            for (int64_t j = 0; j < K; ++j)
                rank += before(place_of(row[own[j]], uint32_t(own[j])), place);
            ids[n * K + rank] = v;
            log_prob[n * K + rank] = row[v];
        }
    }
}

// The child of a node with logits z [rows] plus b [rows], which may be null, for u in [0, 1), by a
// warp; -1 where there is no distribution.
NLM_FN int draw_child(const REAL* z, const REAL* b, int rows, double u) {
    const auto logit = [&](int r) { return b != nullptr ? z[r] + b[r] : z[r]; };
    // few rows: each lane does the same
    const bool few = rows < 4;
    const int lane = int(threadIdx.x) % kWarp, first = few ? 0 : lane, step = few ? 1 : kWarp;
    REAL top = 0;
    for (int r = first; r < rows; r += step) top = logit(r) > top ? logit(r) : top;
    if (!few) top = warp_max(top);
    double sum = 0;
    for (int r = first; r < rows; r += step) sum += exp(double(logit(r)) - double(top));
    if (!few) sum = warp_sum(sum);
    const double none = exp(-double(top));
    sum += none;
    if (!(sum <= 1e300)) return -1;
    double rest = u * sum - none;
    if (rest < 0) return 0;
    int last = 0;  // if the sums rounded below `rest`
    for (int r = 0; r < rows; r += step) {
        const int at = few ? r : r + lane;
        const double own = at < rows ? exp(double(logit(at)) - double(top)) : 0.0;
        if (own > 0) last = at + 1;
        const double until = few ? own : own + warp_sum_before(own);
        const bool beyond = own > 0 && until > rest;
        if (few && beyond) return last;
        if (!few) {
            const unsigned lanes = __ballot_sync(kAllLanes, beyond);
            if (lanes != 0) return r + __ffs(int(lanes));
        }
        rest -= few ? until : __shfl_sync(kAllLanes, until, kWarp - 1);
    }
    return few ? last : warp_max(last);
}

// A warp a row, down from the root. z [N, V - 1] are all logits without bias; null in a binary
// tree, whose nodes take a row each. Row n is the caller's row0 + n. The latency of a node's row,
// one after another, bounds it.
NLM_KERNEL(hsoftmax_sample, 128, int32_t* ids, const REAL* z, const REAL* h, const REAL* w,
           const REAL* b, const int32_t* first, const int32_t* children, int64_t N, int64_t H,
           int V, int M, uint32_t seed, uint32_t step, uint32_t time, uint32_t row0) {
    const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
    REAL* const one = nlm_shared<REAL>() + warp;  // a logit
    int32_t* const row = reinterpret_cast<int32_t*>(nlm_shared<REAL>() + kWarp) + warp;
    const Tree t{w, b, first, H, V, M};
    with_packets<REAL>(uint64_t(w) | uint64_t(h), H, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        for (int64_t n = grid_thread() / kWarp; n < N; n += grid_threads() / kWarp) {
            int64_t entry = V == 1 ? 0 : V;
            for (uint32_t depth = 0; entry >= V; ++depth) {
                Node node{};
                const REAL* logits = one;
                if (!node_rows(t, int32_t(entry - V), node) || (z == nullptr && node.rows > 1)) {
                    entry = -1;
                    break;
                }
                if (z != nullptr) {
                    logits = z + n * (V - 1) + node.row;
                } else {
                    if (lane == 0) *row = node.row;
                    __syncwarp();
                    dot_rows<kLanes>(t, h + n * H, row, 1, one);
                }
                const PhiloxWords drawn =
                    philox(seed, step,
                           {{depth, row0 + uint32_t(n), time, philox_purpose(kPhiloxSample, 0)}});
                const int child = draw_child(logits, b != nullptr ? b + node.row : nullptr,
                                             node.rows, uniform_53(drawn));
                const int64_t next = child < 0 ? -1 : t.first[node.number] + child;
                const int64_t below = next < 0 ? -1 : children[next];
                const bool good = below < V || (below > entry && below < V + M);
                entry = good ? below : -1;
            }
            if (lane == 0) ids[n] = entry < 0 ? -1 : int32_t(entry);
        }
    });
}
