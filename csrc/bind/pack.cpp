// Python binding of packed weights (contract: csrc/pack/pack.h).
#include "bind/array.h"
#include "bind/bind.h"

#include <array>
#include <cstddef>
#include <new>

namespace nlm {

using O = py::object;

void bind_pack(py::module_& m) {
    m.def(
        "pack_weights",
        [](O w, std::array<int, 2> gates) {
            return run("pack_weights", "w", w, [&]<class T>(Call<T>& call) -> py::object {
                if (gates[0] < 0 || gates[1] < 0)
                    throw py::value_error("pack_weights: gates must be 0 or more");
                std::int64_t size = 0;
                PackWeightsArgs<T> a{};
                a.w = call.in("w", w, "R K");
                a.R = call.dim('R'), a.K = call.dim('K');
                a.gates[0] = gates[0], a.gates[1] = gates[1];
                a.size = &size;
                kernels<T>().pack_weights(a);
                constexpr std::align_val_t kLine{64};
                a.panels = static_cast<T*>(::operator new(std::size_t(size) * sizeof(T), kLine));
                const py::capsule owner(a.panels, [](void* p) { ::operator delete(p, kLine); });
                call.launch(kernels<T>().pack_weights, a);
                return py::array_t<T>(size, a.panels, owner);
            });
        },
        py::kw_only(), "w"_a, "gates"_a, "Panels of w; what pynlm.kernels.pack checks.");
}

}  // namespace nlm
