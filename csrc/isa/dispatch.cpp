#include "isa/dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace nlm {

namespace avx512 {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace neon {
extern const KernelTable table;
}
namespace scalar {
extern const KernelTable table;
}

namespace {

struct Level {
    const char* name;
    const KernelTable* table;
    bool supported;
};

#if defined(__x86_64__)
// Features one by one, because GCC 11 does not know "x86-64-v3" here. The builtin asks the
// operating system too: a CPU whose wide registers are not saved does not count.
[[maybe_unused]] bool has_v3() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("popcnt");
}
[[maybe_unused]] bool has_v4() {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

// What was built, best first.
std::vector<Level> levels() {
    std::vector<Level> all;
#if defined(NLM_HAVE_avx512)
    all.push_back({"avx512", &avx512::table, has_v4()});
#endif
#if defined(NLM_HAVE_avx2)
    all.push_back({"avx2", &avx2::table, has_v3()});
#endif
#if defined(NLM_HAVE_neon)
    all.push_back({"neon", &neon::table, true});
#endif
    all.push_back({"scalar", &scalar::table, true});
    return all;
}

Level choose() {
    const char* forced = std::getenv("PYNLM_ISA");
    const bool automatic = forced == nullptr || *forced == '\0';
    std::string valid;
    for (const Level& level : levels()) {
        if (!level.supported) continue;
        if (automatic || level.name == std::string(forced)) return level;
        valid += (valid.empty() ? "" : ", ") + std::string(level.name);
    }
    throw std::invalid_argument("pynlm: PYNLM_ISA must be one of " + valid +
                                " on this machine, got '" + forced + "'");
}

const Level& chosen() {
    static const Level level = choose();
    return level;
}

}  // namespace

const KernelTable& kernel_table() { return *chosen().table; }

std::string isa_name() { return chosen().name; }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Level& level : levels())
        if (level.supported) names.push_back(level.name);
    return names;
}

}  // namespace nlm
