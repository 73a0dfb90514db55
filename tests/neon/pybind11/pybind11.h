// As much of pybind11 as csrc/bind/ uses, without Python: `module_::def` keeps the function, and
// server.cpp calls it with arguments that it has read. So the real bindings run where there is no
// Python, as in an emulator.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace pybind11 {

using ssize_t = std::ptrdiff_t;

// One argument: None, a number, a text, an array, or an object with attributes.
struct Value {
    std::string kind = "none";  // none, number, text, object, or the dtype of an array
    double number = 0;
    std::string text;
    std::vector<std::int64_t> shape;
    std::shared_ptr<void> data;
    std::map<std::string, std::shared_ptr<Value>> attributes;
    bool is_array() const { return data != nullptr; }
};

class object {
public:
    object() = default;
    explicit object(const Value* value) : value_(value) {}
    bool is_none() const { return value_->kind == "none"; }
    const Value& value() const { return *value_; }
    object attr(const char* name) const { return object(value_->attributes.at(name).get()); }
    const Value* ptr() const { return value_; }
    bool equal(const object& other) const { return value_ == other.value_; }
    template <class T>
    T cast() const {
        if constexpr (std::is_arithmetic_v<T>) return static_cast<T>(value_->number);
        return T{};
    }

protected:
    const Value* value_ = nullptr;
};

struct float_ {
    double number;
};
struct str : std::string {
    explicit str(const object& got) : std::string(got.value().kind) {}
    str(const std::string& text) : std::string(text) {}
    str(float_ x) : std::string(std::to_string(x.number)) {}
};
struct type {
    std::string name;
    static type of(const object& got) { return {got.value().kind}; }
    str attr(const char*) const { return name; }
};

class array : public object {
public:
    explicit array(const object& got) : object(got) {}
    std::string dtype() const { return value_->kind; }
    ssize_t ndim() const { return ssize_t(value_->shape.size()); }
    ssize_t shape(ssize_t axis) const { return value_->shape[std::size_t(axis)]; }
    ssize_t size() const {
        ssize_t product = 1;
        for (const std::int64_t n : value_->shape) product *= n;
        return product;
    }
    int flags() const { return ~0; }
    bool writeable() const { return true; }
    const void* data() const { return value_->data.get(); }
};

template <class E>
struct array_t {
    static bool check_(const object& got) {
        return got.value().kind == (std::is_same_v<E, float>    ? "float32"
                                    : std::is_same_v<E, double> ? "float64"
                                                                : "int32");
    }
};

namespace detail {
// Arrays come as they are: none is of a subclass, as those with packed copies are.
struct npy_api {
    static npy_api get() { return {}; }
    const int* PyArray_Type_ = nullptr;
    enum { NPY_ARRAY_C_CONTIGUOUS_ = 1, NPY_ARRAY_ALIGNED_ = 2 };
};
}  // namespace detail

template <class To>
To reinterpret_borrow(const object& got) {
    return To(got);
}
template <class To>
bool isinstance(const object& got) {
    return got.value().is_array();
}

struct type_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct value_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct index_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct gil_scoped_release {
    gil_scoped_release() {}
};

struct none {
    operator object() const {
        static const Value nothing;
        return object(&nothing);
    }
};
inline object getattr(const object&, const char*, const object& fallback) { return fallback; }
inline std::size_t len(const object& got) { return std::size_t(array(got).size()); }
struct kw_only {};
struct arg {
    const char* name;
    Value fallback;
    arg& operator=(none) { return *this; }
    arg& operator=(const char* text) {
        fallback.kind = "text";
        fallback.text = text;
        return *this;
    }
    arg& operator=(double number) {
        fallback.kind = "float";
        fallback.number = number;
        return *this;
    }
    arg& operator=(int number) { return *this = double(number); }  // 0 is a pointer, too
};
inline namespace literals {
inline arg operator""_a(const char* name, std::size_t) { return {name, {}}; }
}  // namespace literals

using Arguments = std::map<std::string, Value>;

class module_ {
public:
    // Function name -> calls it with arguments, and returns its numeric result (0 if none).
    std::map<std::string, std::function<double(const Arguments&)>> functions;

    template <class Function, class... Extra>
    void def(const char* name, Function function, Extra... extra) {
        std::vector<arg> parameters;
        (keep(parameters, extra), ...);
        functions[name] = bind(function, parameters, &Function::operator());
    }

private:
    template <class E>
    static void keep(std::vector<arg>& parameters, const E& extra) {
        if constexpr (std::is_same_v<E, arg>) parameters.push_back(extra);
    }

    template <class P>
    static P convert(const Value& value) {
        if constexpr (std::is_same_v<P, object>) return object(&value);
        if constexpr (std::is_arithmetic_v<P>) return static_cast<P>(value.number);
        if constexpr (std::is_same_v<P, std::string>) return value.text;
    }

    template <class Function, class Result, class... P>
    static std::function<double(const Arguments&)> bind(Function function,
                                                        std::vector<arg> parameters,
                                                        Result (Function::*)(P...) const) {
        return [=](const Arguments& given) {
            const auto value = [&](std::size_t i) -> const Value& {
                const auto found = given.find(parameters.at(i).name);
                return found == given.end() ? parameters[i].fallback : found->second;
            };
            const auto call = [&]<std::size_t... i>(std::index_sequence<i...>) {
                return function(convert<std::decay_t<P>>(value(i))...);
            };
            if constexpr (!std::is_arithmetic_v<Result>) {
                call(std::index_sequence_for<P...>());
                return 0.0;
            } else {
                return static_cast<double>(call(std::index_sequence_for<P...>()));
            }
        };
    }
};

}  // namespace pybind11

inline const int* Py_TYPE(const pybind11::Value*) { return nullptr; }
