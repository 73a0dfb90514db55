"""Facts about the machine and the software, and how busy others kept it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import pynlm
from bench.peers import Peer, missing
from pynlm import _kernels, kernels

ROOT = Path(__file__).resolve().parent.parent


def facts(peers: list[Peer]) -> dict[str, str]:
    """What a reader must know to compare figures, by name."""
    found = {
        "CPU": cpu_model(),
        "CPUs": str(kernels.get_num_threads()),
        "memory": f"{_physical() / 2**30:.0f} GiB",
        "system": platform.platform(),
        "pynlm": f"{pynlm.__version__} ({_kernels.isa_name()}), {commit()}",
        "Python": platform.python_version(),
        "NumPy": version("numpy"),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    for peer in peers:
        found |= peer.versions()
    if absent := missing():
        found["not installed"] = ", ".join(absent)
    return found


def cpu_model() -> str:
    """The processor as it calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    named = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.M)
    if named:
        return named[1].strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


def file_name() -> str:
    """Processor and number of CPUs, as a file name."""
    plain = re.sub(r"\((?:R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", cpu_model(), flags=re.I)
    words = re.findall(r"[a-z0-9]+", plain.lower())
    return "-".join([*words, f"{kernels.get_num_threads()}cpu"])


def commit() -> str:
    """The commit that was measured, and whether files differ from it."""
    # Without optional locks `status` leaves the index alone.
    git = ("git", "-C", str(ROOT), "--no-optional-locks")
    name = _output(*git, "rev-parse", "--short=12", "HEAD")
    if not name:
        return "no commit known"
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return f"commit {name}" + (" with changes" if changed else "")


def available_memory() -> int:
    """Bytes that a process can take: what is free, within the limit of its control group."""
    bounds = [_physical()]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            bounds.append(int(line.split()[1]) * 1024)
    limit = "".join(_lines("/sys/fs/cgroup/memory.max"))
    if limit.isdecimal():
        used = "".join(_lines("/sys/fs/cgroup/memory.current"))
        bounds.append(int(limit) - int(used or 0))
    return min(bounds)


def has_room_for(size: int) -> bool:
    """Whether `size` bytes leave something free."""
    return size <= 0.8 * available_memory()


class OtherWork:
    """How much of the machine other processes took from its making until asked.

    Attributes
    ----------
    load
        Load average at the start: what was running before.
    """

    def __init__(self) -> None:
        self.load = os.getloadavg()[0]
        self._start = self._now()

    def share(self) -> float | None:
        """Part of all CPU time that went to others, None where the system does not tell."""
        total, own, wall = (b - a for a, b in zip(self._start, self._now(), strict=True))
        cpus = os.cpu_count() or 1
        return None if total == 0.0 else min(max((total - own) / (wall * cpus), 0.0), 1.0)

    def describe(self) -> str:
        """The same in words, with the load before."""
        share = self.share()
        taken = "" if share is None else f"took {share * 100:.0f} % of the CPU time of this run; "
        return f"{taken}load average {self.load:.1f} before it"

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """CPU seconds of all processes (and of other guests), of this and its children; time."""
        total = 0.0
        for line in _lines("/proc/stat")[:1]:
            # user nice system idle iowait irq softirq steal
            fields = [int(f) for f in line.split()[1:9]]
            total = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        t = os.times()
        own = t.user + t.system + t.children_user + t.children_system
        return total, own, time.monotonic()


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
