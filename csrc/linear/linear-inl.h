// CPU form of the affine map (contract: linear.h).

template <class T>
void linear_forward(const LinearForwardArgs<T>& a) {
    gemm(GemmArgs<T>{.M = a.N,
                     .N = a.O,
                     .K = a.I,
                     .a = {a.x, a.I, false},
                     .b = {a.w.p, a.I, false},
                     .c = a.y,
                     .ldc = a.O,
                     .bias = a.b,
                     .b_panels = a.w.panels});
}

template <class T>
void linear_backward(const LinearBackwardArgs<T>& a) {
    if (a.dx != nullptr)
        gemm(GemmArgs<T>{.M = a.N,
                         .N = a.I,
                         .K = a.O,
                         .a = {a.dy, a.O, false},
                         .b = {a.w, a.I, true},
                         .c = a.dx,
                         .ldc = a.I});
    gemm(GemmArgs<T>{.M = a.O,
                     .N = a.I,
                     .K = a.N,
                     .a = {a.dy, a.O, true},
                     .b = {a.x, a.I, true},
                     .c = a.dw,
                     .ldc = a.I,
                     .a_sum = a.db});
}
