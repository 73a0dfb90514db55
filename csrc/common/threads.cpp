#include "common/threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/floats.h"

namespace nlm {
namespace {

constexpr int kMaxThreads = 256;
constexpr int64_t kSpinNanoseconds = 50'000;
constexpr int64_t kSleptLeast = 500'000;  // less is a worker's waking up
constexpr int64_t kAloneLeast = 2'000'000, kAloneMost = 64'000'000;

int64_t now_ns() noexcept {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

void pause_cpu() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A thread of the team besides the caller. In a virtual machine a halted CPU does not count as
// idle: a woken thread is put on its waker's CPU, and runs there when that one is done or the
// scheduler notices, milliseconds later. So a parked worker is woken with a mask that lacks that
// CPU, and gets its own mask back at once.
struct Worker {
    pthread_t thread;
#if defined(__linux__)
    cpu_set_t mask;
    bool moved = false;

    void avoid(int cpu) noexcept {
        moved = cpu >= 0 && pthread_getaffinity_np(thread, sizeof mask, &mask) == 0 &&
                CPU_COUNT(&mask) > 1 && CPU_ISSET(cpu, &mask);
        if (!moved) return;
        cpu_set_t others = mask;
        CPU_CLR(cpu, &others);
        moved = pthread_setaffinity_np(thread, sizeof others, &others) == 0;
    }
    void settle() noexcept {
        if (moved) pthread_setaffinity_np(thread, sizeof mask, &mask);
    }
    static int this_cpu() noexcept { return sched_getcpu(); }
#else
    void avoid(int) noexcept {}
    void settle() noexcept {}
    static int this_cpu() noexcept { return -1; }
#endif
};

// A counter that waiters watch: spin first, then sleep until it moves past the value seen.
class Event {
public:
    uint32_t value() const noexcept { return value_.load(std::memory_order_acquire); }

    void advance() noexcept {
        value_.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) != 0) {
            pthread_mutex_lock(&mutex_);
            pthread_cond_broadcast(&condition_);
            pthread_mutex_unlock(&mutex_);
        }
    }

    bool has_sleepers() const noexcept { return sleepers_.load(std::memory_order_seq_cst) != 0; }

    // Returns the nanoseconds slept, 0 where spinning was enough.
    int64_t wait_past(uint32_t seen) noexcept {
        for (int i = 0; i < 512; ++i) {  // most waits end within a microsecond: no clock calls
            if (value() != seen) return 0;
            pause_cpu();
        }
        const int64_t deadline = now_ns() + kSpinNanoseconds;
        do {
            for (int i = 0; i < 64; ++i) {
                if (value() != seen) return 0;
                pause_cpu();
            }
        } while (now_ns() < deadline);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        pthread_mutex_lock(&mutex_);
        while (value_.load(std::memory_order_seq_cst) == seen)
            pthread_cond_wait(&condition_, &mutex_);
        pthread_mutex_unlock(&mutex_);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        return now_ns() - deadline;
    }

private:
    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition_ = PTHREAD_COND_INITIALIZER;
};

class Barrier {
public:
    // Returns the nanoseconds slept.
    int64_t wait(int count) noexcept {
        const uint32_t seen = passed_.value();
        return arrive(count) ? 0 : passed_.wait_past(seen);
    }

    // Whether all have; does not wait for them.
    bool arrive(int count) noexcept {
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < count) return false;
        arrived_.store(0, std::memory_order_relaxed);
        passed_.advance();
        return true;
    }

private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) Event passed_;
};

struct Team {
    std::atomic<bool> busy{false};
    int workers = 0;  // started so far, besides the caller
    Worker worker[kMaxThreads];
    Event job_posted;
    Barrier members;                // of the running job
    Barrier everyone;               // its end: also the workers that had no part in it
    std::atomic<int64_t> slept{0};  // by members at barriers of the running job, nanoseconds
    // Other work on our CPUs makes members wait milliseconds for each other, at every barrier.
    // Then callers work alone, which a busy CPU does not disturb, and try again from time to time.
    int64_t alone_until = 0, alone_for = 0;
    // the job, written before job_posted advances
    TeamFunction function = nullptr;
    void* context = nullptr;
    int team_size = 1;
};

// Never destroyed: workers may outlive static destructors, and a forked child must not touch
// the parent's mutexes.
std::atomic<Team*> team{nullptr};
std::atomic<int> requested_threads{0};
thread_local bool inside_team = false;

struct WorkerStart {
    Team* team;
    int tid;
    uint32_t seen;
};

void* worker_main(void* raw) {
    const WorkerStart start = *static_cast<WorkerStart*>(raw);
    delete static_cast<WorkerStart*>(raw);
    Team& t = *start.team;
    inside_team = true;
    uint32_t seen = start.seen;
    for (;;) {
        t.job_posted.wait_past(seen);
        ++seen;
        if (start.tid < t.team_size) t.function(t.context, start.tid, t.team_size);
        t.everyone.wait(t.workers + 1);
    }
    return nullptr;
}

// The OpenMP runtime of a host, by the functions that compilers call (libgomp's interface, which
// LLVM's and Intel's runtimes have too).
struct OpenMp {
    void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*max_threads)() = nullptr;

    // From where the host finds them: what all libraries see goes before what `library` is linked
    // to.
    bool find(const char* library) noexcept {
#if defined(__linux__)
        void* const own = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);  // open from now on
        for (void* const place : {static_cast<void*>(RTLD_DEFAULT), own}) {
            if (own == nullptr || dlsym(place, "GOMP_parallel") == nullptr) continue;
            const auto get = [&](auto& function, const char* name) {
                function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(place, name));
                return function != nullptr;
            };
            return get(parallel, "GOMP_parallel") && get(thread_num, "omp_get_thread_num") &&
                   get(num_threads, "omp_get_num_threads") &&
                   get(max_threads, "omp_get_max_threads");
        }
#else
        (void)library;
#endif
        return false;
    }
};
OpenMp host;                       // found once, before `borrows` is set
std::atomic<bool> borrows{false};  // its threads are the team

void after_fork_in_child() {
    borrows.store(false, std::memory_order_release);  // its threads do not exist here either
    team.store(nullptr, std::memory_order_release);   // the parent's workers do not exist here
    inside_team = false;
}

void watch_forks() {
    static const int hook = pthread_atfork(nullptr, nullptr, after_fork_in_child);
    (void)hook;
}

Team* current_team() {
    Team* t = team.load(std::memory_order_acquire);
    if (t != nullptr) return t;
    watch_forks();
    Team* fresh = new Team;
    Team* expected = nullptr;
    if (team.compare_exchange_strong(expected, fresh)) return fresh;
    delete fresh;
    return expected;
}

// Starts workers up to `wanted`; a failure to start one leaves a smaller team.
void grow(Team& t, int wanted) {
    while (t.workers < wanted) {
        auto* start = new WorkerStart{&t, t.workers + 1, t.job_posted.value()};
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        Worker& worker = t.worker[t.workers];
        const int error = pthread_create(&worker.thread, &attributes, worker_main, start);
        pthread_attr_destroy(&attributes);
        if (error != 0) {
            delete start;
            return;
        }
        worker.avoid(Worker::this_cpu());
        worker.settle();
        ++t.workers;
    }
}

// Posts the job; workers asleep wake up on other CPUs than this one.
void post(Team& t) noexcept {
    if (!t.job_posted.has_sleepers()) return t.job_posted.advance();
    const int here = Worker::this_cpu();
    for (int i = 0; i < t.workers; ++i) t.worker[i].avoid(here);
    t.job_posted.advance();
    for (int i = 0; i < t.workers; ++i) t.worker[i].settle();
}

// The running job on our own team.
void run_on_workers(Team& t, int wanted) {
    grow(t, wanted - 1);
    t.team_size = std::min(wanted, t.workers + 1);
    post(t);
    inside_team = true;
    t.function(t.context, 0, t.team_size);
    t.slept.fetch_add(t.everyone.wait(t.workers + 1), std::memory_order_relaxed);
    inside_team = false;
}

void borrowed_member(void* raw) {
    Team& t = *static_cast<Team*>(raw);
    const int tid = host.thread_num(), size = std::min(t.team_size, host.num_threads());
    if (tid >= size) return;
    const DefaultFloats floats;  // the host's threads may flush denormals
    inside_team = true;
    t.function(t.context, tid, size);
    inside_team = false;
    if (tid != 0)
        t.everyone.arrive(size);
    else
        t.slept.fetch_add(t.everyone.wait(size), std::memory_order_relaxed);
}

// The running job on the host's threads: always on all of them, because a smaller region would
// make OpenMP end some and start them again. OpenMP's own wait for the last is a spin of
// milliseconds, which may keep that one from the caller's CPU: so the caller first waits as our
// team does.
void run_borrowed(Team& t, int wanted) {
    t.team_size = wanted;
    host.parallel(borrowed_member, &t, unsigned(host.max_threads()), 0);
}

// The number that `text` begins with ("4,2" is OpenMP's for nested teams), 0 if there is none.
int leading_number(const char* text, const char** end) {
    char* after = nullptr;
    const long n = std::strtol(text, &after, 10);
    *end = after;
    return after != text && n >= 1 ? int(std::min<long>(n, kMaxThreads)) : 0;
}

int cgroup_limit() {
#if defined(__linux__)
    std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file == nullptr) return kMaxThreads;
    long long quota = 0, period = 0;
    const int fields = std::fscanf(file, "%lld %lld", &quota, &period);  // "max ..." reads none
    std::fclose(file);
    if (fields == 2 && quota > 0 && period > 0)
        return int(std::clamp<long long>((quota + period - 1) / period, 1, kMaxThreads));
#endif
    return kMaxThreads;
}

int usable_cpus() {
    int cpus = int(sysconf(_SC_NPROCESSORS_ONLN));
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
#endif
    return std::clamp(std::min(cpus, cgroup_limit()), 1, kMaxThreads);
}

int default_threads() {
    const char* end = nullptr;
    if (const char* text = std::getenv("PYNLM_NUM_THREADS"); text != nullptr && *text != '\0') {
        const int n = leading_number(text, &end);
        if (n == 0 || *end != '\0')
            throw std::invalid_argument(
                std::string("PYNLM_NUM_THREADS must be a positive integer, got '") + text + "'");
        return n;
    }
    const char* openmp = std::getenv("OMP_NUM_THREADS");  // others' variable: no business of ours
    const int n = openmp != nullptr ? leading_number(openmp, &end) : 0;
    return n != 0 ? n : usable_cpus();
}

}  // namespace

int get_num_threads() {
    int n = requested_threads.load(std::memory_order_relaxed);
    if (n == 0) {
        n = default_threads();
        requested_threads.store(n, std::memory_order_relaxed);
    }
    return n;
}

void set_num_threads(int n) {
    requested_threads.store(std::clamp(n, 1, kMaxThreads), std::memory_order_relaxed);
}

bool borrow_threads(const char* library) {
    if (library != nullptr && host.max_threads == nullptr) {
        if (!host.find(library)) return false;
        watch_forks();
    }
    borrows.store(library != nullptr, std::memory_order_release);
    return true;
}

void team_run(int max_threads, TeamFunction function, void* context) {
    const int wanted = std::min(max_threads, get_num_threads());
    if (wanted <= 1 || inside_team) {
        function(context, 0, 1);
        return;
    }
    Team& t = *current_team();
    if (t.busy.exchange(true, std::memory_order_acquire)) {
        function(context, 0, 1);
        return;
    }
    const int64_t start = now_ns();
    if (start < t.alone_until) {
        t.busy.store(false, std::memory_order_release);
        function(context, 0, 1);
        return;
    }
    t.function = function;
    t.context = context;
    if (borrows.load(std::memory_order_acquire) && host.max_threads() == get_num_threads())
        run_borrowed(t, wanted);
    else
        run_on_workers(t, wanted);
    const int64_t end = now_ns();
    const int64_t slept = t.slept.exchange(0, std::memory_order_relaxed);
    if (slept > std::max(kSleptLeast, (end - start) / 2)) {
        t.alone_for = std::clamp<int64_t>(2 * t.alone_for, kAloneLeast, kAloneMost);
        t.alone_until = end + t.alone_for;
    } else {
        t.alone_for /= 2;
    }
    t.busy.store(false, std::memory_order_release);
}

void team_barrier(int team_size) noexcept {
    if (team_size <= 1) return;
    Team& t = *team.load(std::memory_order_acquire);
    if (const int64_t slept = t.members.wait(team_size))
        t.slept.fetch_add(slept, std::memory_order_relaxed);
}

}  // namespace nlm
