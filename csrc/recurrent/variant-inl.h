// CPU form of what variant.h describes, for the general instantiations of the loops.

// Draws d, the share of the previous state, anew in each pass.
template <class T>
class Zoneout {
public:
    Zoneout(const RecurrentVariant<T>& v, double p, uint32_t site)
        : v_(v),
          keys_(v.seed, v.step),
          p_(p),
          threshold_(philox_threshold(p)),
          purpose_(philox_purpose(site, v.layer)) {}

    // s_t = d s_{t-1} + (1 - d) s', which is exactly s_{t-1} for d = 1 and s' for d = 0.
    Vec<T> mix(int64_t t, int64_t row, int64_t unit, Vec<T> previous, Vec<T> fresh) const {
        if (p_ == 0) return fresh;
        const Vec<T> d = share(t, row, unit);
        return d * previous + (T(1) - d) * fresh;
    }

    // Takes from the gradient of s_t the part that flows past the cell, to s_{t-1}, and returns it.
    Vec<T> past(int64_t t, int64_t row, int64_t unit, Vec<T>& gradient) const {
        if (p_ == 0) return Vec<T>{};
        const Vec<T> part = share(t, row, unit) * gradient;
        gradient = gradient - part;
        return part;
    }

private:
    Vec<T> share(int64_t t, int64_t row, int64_t unit) const {
        if (!v_.sample) return splat(T(p_));
        const int64_t first = unit / kPhiloxUnits * kPhiloxUnits;
        const uint32_t id = uint32_t(v_.rows != nullptr ? v_.rows[row] : row);
        const PhiloxUnits words =
            philox_units(keys_, uint32_t(first >> 2), id, uint32_t(v_.time0 + t), purpose_);
        const int64_t at = unit - first;
        const PhiloxHalves half = at < kPhiloxUnits / 2 ? words.first : words.second;
        const IntVec<float> zoned = half < threshold_;
        if constexpr (sizeof(T) == 4) {
            return zoned ? splat(T(1)) : Vec<T>{};
        } else {
            Vec<T> d;
            for (int i = 0; i < kLanes<T>; ++i)
                d[i] = zoned[at % (kPhiloxUnits / 2) + i] != 0 ? T(1) : T(0);
            return d;
        }
    }

    const RecurrentVariant<T>& v_;
    PhiloxKeys keys_;
    double p_;
    uint32_t threshold_, purpose_;
};

// a[row][unit] of a [rows, H] matrix.
template <class T>
inline Vec<T> state_at(const T* a, int64_t H, int64_t row, int64_t unit, int64_t n) {
    return load_n(a + row * H + unit, n);
}

// out = m mask, [rows, H].
template <class T>
inline void multiply(T* out, const T* m, const T* mask, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes<T>)
        store_n(out + i, load_n(m + i, count - i) * load_n(mask + i, count - i), count - i);
}

// The state that enters w_hh at a step: what follows h0, and what follows y.
template <class T>
struct StateInput {
    const T* h0;
    const T* y;

    StateInput(const RecurrentVariant<T>& v, const T* initial, const T* states, int64_t count,
               Scratch& scratch)
        : h0(initial), y(states) {
        if (v.mask_h == nullptr) return;
        T* const masked = scratch.take<T>(count);
        multiply(masked, initial, v.mask_h, count);
        h0 = masked;
        y = v.h_in;
    }
};

// Gradient of h, in general loops: `rec` comes from the product with w_hh, `direct` does not.
template <class T>
struct StateGradient {
    const T* mask_h;
    T* rec;
    T* direct;
    int64_t H;

    Vec<T> at(int64_t row, int64_t unit, int64_t n) const {
        Vec<T> d = state_at<T>(rec, H, row, unit, n);
        if (mask_h != nullptr) d = d * state_at(mask_h, H, row, unit, n);
        return d + state_at<T>(direct, H, row, unit, n);
    }
    // After the last product: the gradient of h0.
    void finish(T* dh0, int64_t rows) const {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t u = 0; u < H; u += kLanes<T>)
                store_n(dh0 + r * H + u, at(r, u, H - u), H - u);
    }
};

// `direct` is dh0, which holds the gradient of the last state.
template <class T>
inline StateGradient<T> general_gradient(const RecurrentVariant<T>& v, T* dh0, int64_t B, int64_t H,
                                         Scratch& scratch) {
    T* const rec = scratch.take<T>(B * H);
    __builtin_memset(rec, 0, std::size_t(B * H) * sizeof(T));
    return {v.mask_h, rec, dh0, H};
}

// The gradient dh of the new state before clipping, from that after it; y [.., H] is the state,
// whose fresh units (others have no gradient) lie on the bound if they were beyond it.
template <class T>
inline Vec<T> unclip(const RecurrentVariant<T>& v, const T* y, int64_t n, Vec<T> dh) {
    if (v.clip_h <= 0) return dh;
    const Vec<T> bound = splat(T(v.clip_h)), h = load_n(y, n);
    dh = h >= bound ? Vec<T>{} : dh;
    return h <= -bound ? Vec<T>{} : dh;
}

// What follows the plain cell's own finish(): clipping, zoneout, and the state as it enters w_hh.
template <class T>
inline void finish_general(const RecurrentVariant<T>& v, const Zoneout<T>& zoneout, int64_t t,
                           Range rows, int64_t unit, int64_t n, const T* h_prev, T* h, int64_t B,
                           int64_t H) {
    const T bound = v.clip_h > 0 ? T(v.clip_h) : std::numeric_limits<T>::infinity();
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const int64_t at = r * H + unit;
        const Vec<T> fresh = VecFn<T>::clamp(load_n(h + at, n), splat(bound));
        const Vec<T> y = zoneout.mix(t, r, unit, load_n(h_prev + at, n), fresh);
        store_n(h + at, y, n);
        if (v.mask_h != nullptr) store_n(v.h_in + t * B * H + at, y * load_n(v.mask_h + at, n), n);
    }
}
