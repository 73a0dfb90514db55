// CPU loops of adam (contract: adam.h, equations: adam_math.h).

template <class T>
inline void adam_span(T* w, const T* g, T* m, T* v, int64_t n, const AdamRates<T>& k) {
    each_vector<T>(n, [&](int64_t i, int64_t lanes) {
        Vec<T> wv = load_n(w + i, lanes), mv = load_n(m + i, lanes), vv = load_n(v + i, lanes);
        adam_step<OptimFn<T>>(wv, g ? load_n(g + i, lanes) : Vec<T>{}, mv, vv, k);
        store_n<T>(w + i, wv, lanes);
        store_n<T>(m + i, mv, lanes);
        store_n<T>(v + i, vv, lanes);
    });
}

constexpr int kAdamArrays = 7;  // reads g, w, m, v; writes w, m, v

// Args: AdamUpdateArgs or AdamUpdateRowsArgs. update(span) deals the work out.
template <class T, class Args, class Update>
inline void adam(const Args& a, const Update& update) {
    const double t = double(a.t);
    const AdamRates<T> k{
        .scale = T(a.scale),
        .keep = a.decoupled ? T(1 - a.lr * a.weight_decay) : T(1),
        .decay = a.decoupled ? T(0) : T(a.weight_decay),
        .beta1 = T(a.beta1),
        .one_minus_beta1 = T(1 - a.beta1),
        .beta2 = T(a.beta2),
        .one_minus_beta2 = T(1 - a.beta2),
        .step = T(a.lr / (1 - __builtin_pow(a.beta1, t))),
        .correction = T(1 / __builtin_sqrt(1 - __builtin_pow(a.beta2, t))),
        .eps = T(a.eps),
    };
    auto span = [&](int64_t first, int64_t n, const T* g) {
        adam_span(a.w + first, g, a.m + first, a.v + first, n, k);
    };
    update(span);
}

template <class T>
void adam_update(const AdamUpdateArgs<T>& a) {
    adam<T>(a, [&](auto& span) { update_flat(a.g, a.N, kAdamArrays, span); });
}

template <class T>
void adam_update_rows(const AdamUpdateRowsArgs<T>& a) {
    const RowGradient<T> gradient{a.rows, a.drows, a.N, a.V, a.D};
    adam<T>(a, [&](auto& span) { update_rows(gradient, true, kAdamArrays, span); });
}
