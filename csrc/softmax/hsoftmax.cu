// Hierarchical softmax on a GPU (contract: hsoftmax.h): losses and gradients. A warp walks a
// token's path; the root, if it is wide, is a product of all tokens before that. Gradients of rows
// are sums over (row, token) pairs, in common/sums.cu.
#include "softmax/hsoftmax_node-inl.h"

// What a token adds to a path's rows.
struct PathOut {
    REAL* z;        // [cost]: logits of wide nodes, then all gradients of logits
    int32_t* rows;  // [cost]: of w; null: no gradients
    REAL* dh;       // [H]
    int64_t cost;
};

// dh (+)= dz[i] w[row[i]] for i < count, by a warp; row and dz are its shared memory.
template <int kLanes>
NLM_FN void add_rows(const Tree& t, REAL* dh, const int32_t* row, const REAL* dz, int count,
                     bool overwrite) {
    for (int64_t c = int64_t(threadIdx.x) % kWarp * kLanes; c < t.H; c += kWarp * kLanes) {
        Packet<REAL, kLanes> sum{};
        if (!overwrite) sum = load_packet<REAL, kLanes>(dh + c);
#pragma unroll 4
        for (int i = 0; i < count; ++i) {
            const auto w = load_packet<REAL, kLanes>(t.w + row[i] * t.H + c);
            for (int l = 0; l < kLanes; ++l) sum.at[l] += dz[i] * w.at[l];
        }
        store_packet(dh + c, sum);
    }
    __syncwarp();
}

// The loss of the nodes on the way up from token `target`, without the root if that is done, by a
// warp. `row` and `z` are its shared memory, of kWarp elements.
template <int kLanes, bool kGradients>
NLM_FN double path_loss(const Tree& t, const int32_t* parent, bool root_done, int64_t target,
                        const REAL* h, REAL weight, const PathOut& out, int32_t* row, REAL* z) {
    const int lane = int(threadIdx.x) % kWarp;
    int64_t entry = target, place = 0;
    // Nodes of few rows wait until they have as many as there are lanes. Each lane knows one of
    // the rows, and one of the nodes: where its rows begin, how many they are, and the child.
    int rows = 0, nodes = 0, own_row = 0, own_begin = 0, own_rows = 0, own_child = 0;
    bool fresh = !root_done;
    double loss = 0;
    for (bool more = true; more;) {
        Node node{};
        const Step step = step_up(t, parent, entry, node);
        more = step == kNode && !(root_done && node.number == 0);
        const bool room =
            out.z != nullptr ? place + rows + node.rows <= out.cost : node.rows < kWide;
        if (step == kFault || (more && !room)) {
            more = false;
            loss = nan_of_double();
        }
        if (rows > 0 && (!more || rows + node.rows > kWarp)) {
            if (lane < rows) row[lane] = own_row;
            __syncwarp();
            dot_rows<kLanes>(t, h, row, rows, z);
            if (lane < rows && t.b != nullptr) z[lane] += t.b[own_row];
            __syncwarp();
            double part = 0;
            if (lane < nodes)
                part = node_loss<false>(z + own_begin, own_rows, own_child, weight, kGradients);
            loss += warp_sum(part);
            if (kGradients) {
                __syncwarp();
                if (lane < rows) {
                    out.z[place + lane] = z[lane];
                    out.rows[place + lane] = own_row;
                }
                add_rows<kLanes>(t, out.dh, row, z, rows, fresh);
                fresh = false;
                place += rows;
            }
            rows = nodes = 0;
        }
        if (!more) break;
        if (node.rows < kWide) {
            if (lane >= rows && lane < rows + node.rows) own_row = node.row + lane - rows;
            if (lane == nodes) own_begin = rows, own_rows = node.rows, own_child = node.child;
            rows += node.rows;
            ++nodes;
            continue;
        }
        REAL* const logits = out.z + place;
        for (int r = 0; r < node.rows; r += kWarp) {
            const int count = node.rows - r < kWarp ? node.rows - r : kWarp;
            if (lane < count) row[lane] = node.row + r + lane;
            __syncwarp();
            dot_rows<kLanes>(t, h, row, count, z);
            if (lane < count) {
                logits[r + lane] = t.b != nullptr ? z[lane] + t.b[row[lane]] : z[lane];
                if (kGradients) out.rows[place + r + lane] = row[lane];
            }
            __syncwarp();
        }
        loss += node_loss<true>(logits, node.rows, node.child, weight, kGradients);
        for (int r = 0; r < node.rows && kGradients; r += kWarp) {
            const int count = node.rows - r < kWarp ? node.rows - r : kWarp;
            if (lane < count) row[lane] = node.row + r + lane, z[lane] = logits[r + lane];
            __syncwarp();
            add_rows<kLanes>(t, out.dh, row, z, count, fresh);
            fresh = false;
        }
        if (kGradients) place += node.rows;
    }
    if (kGradients) {
        // what is left of the token's pairs belongs to no row
        for (int64_t i = place + lane; i < out.cost; i += kWarp) out.rows[i] = t.V - 1;
        for (int64_t c = lane; c < t.H && fresh; c += kWarp) out.dh[c] = 0;
    }
    return loss;
}

// A warp a token: nll, and with `rows` [N, cost] also dh, the rows met and, in z [N, cost], the
// gradients of their logits. Without, z is [warps, cost], or
// null if no path has a wide node.
// root_loss [N], if not null, is of the root, which is then left out, and dh is added to. Reads
// cost H numbers of w a token (twice with gradients, mostly from the caches); their traffic from
// the second-level cache bounds it.
NLM_KERNEL(hsoftmax_paths, 128, REAL* nll, REAL* dh, int32_t* rows, REAL* z, const REAL* h,
           const REAL* w, const REAL* b, const int32_t* first, const int32_t* parent,
           const int32_t* targets, const REAL* weights, const double* root_loss, int64_t N,
           int64_t H, int64_t cost, int V, int M) {
    const int thread = int(threadIdx.x), warp = thread / kWarp;
    REAL* const own_z = nlm_shared<REAL>() + warp * kWarp;
    int32_t* const own_rows =
        reinterpret_cast<int32_t*>(nlm_shared<REAL>() + blockDim.x) + warp * kWarp;
    const Tree t{w, b, first, H, V, M};
    with_packets<REAL>(uint64_t(w) | uint64_t(h) | uint64_t(dh), H, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        const int64_t warps = grid_threads() / kWarp, mine = grid_thread() / kWarp;
        for (int64_t n = mine; n < N; n += warps) {
            double loss;
            const int64_t target = entry_of(t, targets[n]);
            const REAL weight = weights != nullptr ? weights[n] : REAL(1);
            if (rows != nullptr)
                loss = path_loss<kLanes, true>(
                    t, parent, root_loss != nullptr, target, h + n * H, weight,
                    {z + n * cost, rows + n * cost, dh + n * H, cost}, own_rows, own_z);
            else
                loss = path_loss<kLanes, false>(
                    t, parent, root_loss != nullptr, target, h + n * H, weight,
                    {z != nullptr ? z + mine * cost : nullptr, nullptr, nullptr, cost}, own_rows,
                    own_z);
            if (root_loss != nullptr) loss += root_loss[n];
            if (thread % kWarp == 0) nll[n] = REAL(loss);
        }
    });
}

// A warp a token: the loss at the root, whose logits without bias are z [N, R], and with
// `gradients` those of the logits in their place. Moves z three times; bound by memory.
NLM_KERNEL(hsoftmax_root, 256, double* loss, REAL* z, const REAL* b, const int32_t* first,
           const int32_t* parent, const int32_t* targets, const REAL* weights, int64_t N, int R,
           int V, int M, int gradients) {
    const Tree t{nullptr, b, first, 0, V, M};
    const int lane = int(threadIdx.x) % kWarp;
    for (int64_t n = grid_thread() / kWarp; n < N; n += grid_threads() / kWarp) {
        int64_t entry = entry_of(t, targets[n]);
        Node node{};
        Step step = kNode;
        while (step == kNode && entry != V) step = step_up(t, parent, entry, node);
        REAL* const logits = z + n * R;
        for (int r = lane; r < R && b != nullptr; r += kWarp) logits[r] += b[r];
        __syncwarp();
        const bool good = step == kNode && node.rows == R;
        const REAL weight = weights != nullptr ? weights[n] : REAL(1);
        const double own =
            node_loss<true>(logits, R, good ? node.child : 0, weight, gradients != 0);
        if (lane == 0) loss[n] = good ? own : nan_of_double();
    }
}

// costs[v]: rows on the path of token v, without the root's if `skip_root`.
NLM_KERNEL(hsoftmax_costs, 256, int64_t* costs, const int32_t* first, const int32_t* parent, int V,
           int M, int skip_root) {
    const Tree t{nullptr, nullptr, first, 0, V, M};
    for (int64_t v = grid_thread(); v < V; v += grid_threads()) {
        int64_t entry = v, cost = 0;
        for (Node node{}; step_up(t, parent, entry, node) == kNode;)
            if (node.number != 0 || !skip_root) cost += node.rows;
        costs[v] = cost;
    }
}
