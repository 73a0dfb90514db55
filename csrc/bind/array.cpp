#include "bind/array.h"

namespace nlm::bind_detail {

namespace {

// Calls visit(factor, symbol) for each axis of a pattern such as "T B 4H" or "2 B"; the symbol of a
// bare number is 0.
template <class Visit>
void each_axis(const char* shape, Visit&& visit) {
    for (const char* s = shape; *s != '\0'; ++s) {
        if (*s == ' ') continue;
        const std::int64_t factor = *s >= '1' && *s <= '9' ? *s++ - '0' : 1;
        const bool bare = *s == ' ' || *s == '\0';
        visit(factor, bare ? '\0' : *s);
        if (*s == '\0') break;
    }
}

}  // namespace

bool matches(const py::array& array, const char* shape, Dims& dims) {
    Dims learnt = dims;
    py::ssize_t axis = 0;
    bool equal = true;
    each_axis(shape, [&](std::int64_t factor, char symbol) {
        if (axis >= array.ndim()) {
            equal = false;
            return;
        }
        const std::int64_t size = array.shape(axis++);
        if (symbol == '\0') {
            equal = equal && size == factor;
            return;
        }
        std::int64_t& known = learnt[symbol - 'A'];
        if (known < 0) known = size / factor;
        equal = equal && known * factor == size;
    });
    equal = equal && axis == array.ndim();
    if (equal) dims = learnt;
    return equal;
}

std::string wanted(const char* function, const char* name, const char* dtype, const char* shape,
                   const Dims& dims) {
    std::string text = function;
    text.append(": ").append(name).append(" must be ").append(dtype).append(" [");
    const char* separator = "";
    each_axis(shape, [&](std::int64_t factor, char symbol) {
        text.append(separator);
        separator = ", ";
        if (factor > 1 || symbol == '\0') text.append(std::to_string(factor));
        if (symbol == '\0') return;
        text.push_back(symbol);
        const std::int64_t size = dims[symbol - 'A'];
        if (size >= 0) text.append("=").append(std::to_string(factor * size));
    });
    return text.append("]");
}

std::string describe(const py::object& got) {
    if (!py::isinstance<py::array>(got)) return py::str(py::type::of(got).attr("__name__"));
    const auto array = py::reinterpret_borrow<py::array>(got);
    std::string text = py::str(array.dtype());
    text.append(" [");
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        if (axis > 0) text.append(", ");
        text.append(std::to_string(array.shape(axis)));
    }
    return text.append("]");
}

void fail_id(const char* function, const char* name, std::int64_t position, std::int32_t got,
             char range, std::int64_t size) {
    std::string text = function;
    text.append(": ").append(name).append("[").append(std::to_string(position));
    text.append("] must be in [0, ").append(1, range).append("=").append(std::to_string(size));
    throw py::index_error(text.append("), got ").append(std::to_string(got)));
}

void fail_length(const char* function, const char* name, std::int64_t position, std::int32_t got,
                 std::int64_t steps) {
    std::string text = function;
    text.append(": ").append(name).append(" must be non-increasing and in [0, T=");
    text.append(std::to_string(steps)).append("], got ").append(std::to_string(got));
    throw py::value_error(text.append(" at position ").append(std::to_string(position)));
}

void fail_gates(const char* function, const char* name, const py::object& got, int gates,
                int second) {
    std::string text = function;
    text.append(": ").append(name).append(" must be packed with gates=(");
    text.append(std::to_string(gates)).append(", ").append(std::to_string(second));
    throw py::value_error(text.append("), got ").append(py::str(got)));
}

bool is_plain(const py::object& array) {
    return Py_TYPE(array.ptr()) == py::detail::npy_api::get().PyArray_Type_;
}

}  // namespace nlm::bind_detail
