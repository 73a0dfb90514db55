// The floating-point environment that kernels run in: round to nearest, denormal numbers kept.
//
// Hosts may change that of their threads (XLA's flush denormals to zero, torch's do on request),
// and a new thread inherits its maker's. Results must not depend on which thread computes them.
#pragma once

#if !defined(__x86_64__)
#include <cfenv>
#endif

namespace nlm {

// The default environment, from its making to the end of its scope.
class DefaultFloats {
public:
#if defined(__x86_64__)
    // Only what vector instructions look at: no kernel uses others, and this takes nanoseconds.
    DefaultFloats() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
    ~DefaultFloats() { __builtin_ia32_ldmxcsr(before_); }
#else
    DefaultFloats() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloats() { std::fesetenv(&before_); }
#endif
    DefaultFloats(const DefaultFloats&) = delete;
    DefaultFloats& operator=(const DefaultFloats&) = delete;

private:
#if defined(__x86_64__)
    unsigned before_;
#else
    std::fenv_t before_;
#endif
};

}  // namespace nlm
