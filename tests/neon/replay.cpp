// Replays recorded kernel calls (record.py) through this machine's kernels, at every
// instruction-set level, and compares what they write with what the recording machine's kernels
// wrote.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>

#include "bind/bind.h"
#include "isa/dispatch.h"

namespace {

namespace py = pybind11;

constexpr std::size_t kAlignment = 64;

std::size_t element_size(const std::string& dtype) { return dtype == "float64" ? 8 : 4; }

py::Value read_value(std::istream& in) {
    py::Value value;
    in >> value.kind;
    if (value.kind == "int" || value.kind == "float" || value.kind == "bool") {
        in >> value.number;
    } else if (value.kind == "str") {
        in >> value.text;
    } else if (value.kind != "none") {
        std::size_t ndim = 0, bytes = element_size(value.kind);
        in >> ndim;
        value.shape.resize(ndim);
        for (std::int64_t& size : value.shape) {
            in >> size;
            bytes *= std::size_t(size);
        }
        in.get();  // the end of the line; raw bytes follow
        const std::size_t padded = (bytes / kAlignment + 1) * kAlignment;
        value.data = std::shared_ptr<void>(std::aligned_alloc(kAlignment, padded), std::free);
        in.read(static_cast<char*>(value.data.get()), std::streamsize(bytes));
        value.after.resize(bytes);
        in.read(value.after.data(), std::streamsize(bytes));
    }
    return value;
}

// Largest |got - expected| / (largest |expected| + 1); infinite where only one is a number.
template <class E>
double error_of(const py::Value& value) {
    const auto* got = static_cast<const E*>(value.data.get());
    std::vector<E> expected(value.after.size() / sizeof(E));
    std::memcpy(expected.data(), value.after.data(), value.after.size());
    double scale = 1, error = 0;
    for (const E x : expected)
        if (std::isfinite(double(x))) scale = std::fmax(scale, std::fabs(double(x)));
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double a = double(got[i]), b = double(expected[i]);
        if (a == b || (std::isnan(a) && std::isnan(b))) continue;
        const double difference = std::fabs(a - b) / scale;
        error = std::fmax(error, std::isnan(difference) ? HUGE_VAL : difference);
    }
    return error;
}

double error_of(const py::Value& value) {
    if (value.kind == "float32") return error_of<float>(value);
    if (value.kind == "float64") return error_of<double>(value);
    return error_of<std::int32_t>(value);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s RECORDING\n", argv[0]);
        return 2;
    }
    py::module_ module;
    nlm::bind_recurrent(module);
    nlm::bind_softmax(module);
    nlm::bind_small(module);

    std::ifstream in(argv[1], std::ios::binary);
    std::map<std::string, double> tolerance;
    std::map<std::string, int> calls;
    int failures = 0;
    std::string word;
    while (in >> word) {
        if (word == "tolerance") {
            std::string dtype;
            in >> dtype >> tolerance[dtype];
            continue;
        }
        std::string function, name;
        std::size_t count = 0;
        in >> function >> count;
        py::Arguments arguments;
        double allowed = 0;
        for (std::size_t i = 0; i < count; ++i) {
            in >> name;
            py::Value& value = arguments[name] = read_value(in);
            allowed = std::fmax(allowed, tolerance[value.kind]);
        }
        const py::Value result = read_value(in);
        ++calls[function];
        const double returned = module.functions.at(function)(arguments);
        const auto report = [&](const std::string& what, double error) {
            if (error <= allowed) return;
            ++failures;
            std::printf("FAILED %s call %d: %s differs by %g, allowed %g\n", function.c_str(),
                        calls[function], what.c_str(), error, allowed);
        };
        report("result", std::fabs(returned - result.number) / (1 + std::fabs(result.number)));
        for (const auto& [argument, value] : arguments)
            if (value.is_array()) report(argument, error_of(value));
    }
    int total = 0;
    for (const auto& [function, n] : calls) total += n;
    std::printf("%s: %d calls of %zu kernels, %d failures\n", nlm::isa_name().c_str(), total,
                calls.size(), failures);
    return failures == 0 ? 0 : 1;
}
