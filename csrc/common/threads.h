// The one door to threads: a lazily started team of pthreads (never an OpenMP runtime of our own: a
// second one inside a host process that already spins one collapses), or the threads of the host's
// OpenMP runtime.
//
// Workers spin for about 50 us at a barrier, then park. A caller that finds the team busy, or
// that is itself a member of it, runs alone: kernels give the same bits for any team size. So it
// does for some milliseconds after a job whose members slept half its time waiting for one another.
// After fork() the child starts a new team on first use.
#pragma once

namespace nlm {

// Members a call may use: set_num_threads, else PYNLM_NUM_THREADS, else OMP_NUM_THREADS, else
// the CPUs of the affinity mask, held to the cgroup's quota. Throws std::invalid_argument if
// PYNLM_NUM_THREADS is no positive integer.
int get_num_threads();
void set_num_threads(int n);  // n >= 1

// From now on members are the threads of the OpenMP runtime that `library`, which the process has
// loaded, is linked to, wherever that runtime would itself use get_num_threads() of them; null: our
// own again. False, and nothing changes, if there is none; once there is one, it stays the one. A
// child of fork() has its own.
bool borrow_threads(const char* library);

using TeamFunction = void (*)(void* context, int tid, int team_size);

// Calls function(context, tid, n) on n <= max_threads members at once, the caller as tid 0, and
// returns when all have returned.
void team_run(int max_threads, TeamFunction function, void* context);

// Waits for all members of the running team. Only inside team_run, by every member.
void team_barrier(int team_size) noexcept;

}  // namespace nlm
