// CPU loops of sgd (contract: sgd.h, equations: sgd_math.h).

template <class T, bool kMomentum>
inline void sgd_span(T* w, const T* g, T* buffer, int64_t n, const SgdRates<T>& k) {
    each_vector<T>(n, [&](int64_t i, int64_t lanes) {
        Vec<T> wv = load_n(w + i, lanes), bv{};
        if constexpr (kMomentum) bv = load_n(buffer + i, lanes);
        sgd_step<OptimFn<T>, kMomentum>(wv, g ? load_n(g + i, lanes) : Vec<T>{}, bv, k);
        store_n<T>(w + i, wv, lanes);
        if constexpr (kMomentum) store_n<T>(buffer + i, bv, lanes);
    });
}

// Args: SgdUpdateArgs or SgdUpdateRowsArgs. update(span, arrays) deals the work out.
template <class T, class Args, class Update>
inline void sgd(const Args& a, const Update& update) {
    const SgdRates<T> k{T(a.scale), T(a.lr), T(a.momentum), T(a.weight_decay), a.nesterov};
    auto plain = [&](int64_t first, int64_t n, const T* g) {
        sgd_span<T, false>(a.w + first, g, nullptr, n, k);
    };
    auto with_momentum = [&](int64_t first, int64_t n, const T* g) {
        sgd_span<T, true>(a.w + first, g, a.momentum_buffer + first, n, k);
    };
    if (a.momentum_buffer == nullptr)
        update(plain, 3);
    else
        update(with_momentum, 5);
}

template <class T>
void sgd_update(const SgdUpdateArgs<T>& a) {
    sgd<T>(a, [&](auto& span, int arrays) { update_flat(a.g, a.N, arrays, span); });
}

template <class T>
void sgd_update_rows(const SgdUpdateRowsArgs<T>& a) {
    const RowGradient<T> gradient{a.rows, a.drows, a.N, a.V, a.D};
    const bool absent_too = a.weight_decay != 0 || a.momentum_buffer != nullptr;
    sgd<T>(a, [&](auto& span, int arrays) { update_rows(gradient, absent_too, arrays, span); });
}
