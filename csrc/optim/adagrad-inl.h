// CPU loops of adagrad (contract: adagrad.h, equations: adagrad_math.h).

template <class T>
inline void adagrad_span(T* w, const T* g, T* v, int64_t n, const AdagradRates<T>& k) {
    each_vector<T>(n, [&](int64_t i, int64_t lanes) {
        Vec<T> wv = load_n(w + i, lanes), vv = load_n(v + i, lanes);
        adagrad_step<OptimFn<T>>(wv, g ? load_n(g + i, lanes) : Vec<T>{}, vv, k);
        store_n<T>(w + i, wv, lanes);
        store_n<T>(v + i, vv, lanes);
    });
}

constexpr int kAdagradArrays = 5;  // reads g, w, v; writes w, v

// Args: AdagradUpdateArgs or AdagradUpdateRowsArgs. update(span) deals the work out.
template <class T, class Args, class Update>
inline void adagrad(const Args& a, const Update& update) {
    const AdagradRates<T> k{T(a.scale), T(a.lr), T(a.eps), T(a.weight_decay)};
    auto span = [&](int64_t first, int64_t n, const T* g) {
        adagrad_span(a.w + first, g, a.v + first, n, k);
    };
    update(span);
}

template <class T>
void adagrad_update(const AdagradUpdateArgs<T>& a) {
    adagrad<T>(a, [&](auto& span) { update_flat(a.g, a.N, kAdagradArrays, span); });
}

template <class T>
void adagrad_update_rows(const AdagradUpdateRowsArgs<T>& a) {
    const RowGradient<T> gradient{a.rows, a.drows, a.N, a.V, a.D};
    const bool absent_too = a.weight_decay != 0 || a.eps <= 0;
    adagrad<T>(a, [&](auto& span) { update_rows(gradient, absent_too, kAdagradArrays, span); });
}
