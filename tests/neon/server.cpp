// Runs kernels for check.py: reads calls from standard input, and answers each on standard output
// with its array arguments as the kernel left them, then with its result.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>

#include "bind/bind.h"
#include "isa/dispatch.h"

namespace {

namespace py = pybind11;

constexpr std::size_t kAlignment = 64;

std::size_t size_in_bytes(const py::Value& value) {
    std::size_t bytes = value.kind == "float64" ? 8 : 4;
    for (const std::int64_t size : value.shape) bytes *= std::size_t(size);
    return bytes;
}

py::Value read_value(std::istream& in) {
    py::Value value;
    in >> value.kind;
    if (value.kind == "number") {
        in >> value.number;
    } else if (value.kind == "text") {
        in >> value.text;
    } else if (value.kind == "object") {
        std::size_t count = 0;
        in >> count;
        for (std::string name; count > 0; --count) {
            in >> name;
            value.attributes[name] = std::make_shared<py::Value>(read_value(in));
        }
    } else if (value.kind != "none") {
        std::size_t ndim = 0;
        in >> ndim;
        value.shape.resize(ndim);
        for (std::int64_t& size : value.shape) in >> size;
        in.get();  // the end of the line; raw bytes follow
        const std::size_t bytes = size_in_bytes(value);
        const std::size_t padded = (bytes / kAlignment + 1) * kAlignment;
        value.data = std::shared_ptr<void>(std::aligned_alloc(kAlignment, padded), std::free);
        in.read(static_cast<char*>(value.data.get()), std::streamsize(bytes));
    }
    return value;
}

}  // namespace

int main() try {
    std::ios::sync_with_stdio(false);
    py::module_ module;
    nlm::bind_recurrent(module);
    nlm::bind_softmax(module);
    nlm::bind_hsoftmax(module);
    nlm::bind_candidates(module);
    nlm::bind_small(module);
    std::cout << nlm::isa_name() << std::endl;

    std::string function;
    std::size_t count = 0;
    while (std::cin >> function >> count) {
        std::vector<std::string> order(count);
        py::Arguments arguments;
        for (std::string& name : order) {
            std::cin >> name;
            arguments[name] = read_value(std::cin);
        }
        const double result = module.functions.at(function)(arguments);
        for (const std::string& name : order) {
            const py::Value& value = arguments[name];
            if (value.data)
                std::cout.write(static_cast<const char*>(value.data.get()),
                                std::streamsize(size_in_bytes(value)));
        }
        char text[32];
        std::snprintf(text, sizeof text, "%.17g", result);
        std::cout << text << std::endl;
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
