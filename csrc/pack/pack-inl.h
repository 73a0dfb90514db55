// CPU form of packed weights (contract: pack.h): the panels that gemm() and the recurrent loops
// otherwise pack in every call.

template <class T>
void pack_weights(const PackWeightsArgs<T>& a) {
    const int gates = a.gates[0] + a.gates[1];
    if (gates == 0) {
        *a.size = columns_size<T>(a.R, a.K);
        if (a.panels != nullptr && a.K > 0) pack_columns(a.panels, {a.w, a.K, false}, a.R, a.K);
        return;
    }
    const int64_t units = a.R / gates, vectors = (units + kLanes<T> - 1) / kLanes<T>;
    const int64_t first = panel_size<T>(units, a.gates[0] * a.K);
    *a.size = first + panel_size<T>(units, a.gates[1] * a.K);
    if (a.panels == nullptr) return;
    auto body = [&](int tid, int size) {
        pack_forward(a.panels, units, a.K, a.w, a.gates[0], kTileVecs, {0, vectors}, tid, size);
        if (a.gates[1] > 0)
            pack_forward(a.panels + first, units, a.K, a.w + a.gates[0] * units * a.K, a.gates[1],
                         kTileVecs, {0, vectors}, tid, size);
    };
    parallel(threads_for(4.0 * double(a.R) * double(a.K)), body);
}
