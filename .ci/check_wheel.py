"""Check that a wheel holds all that an installed pynlm needs, and nothing that it does not."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent

NEEDED = [
    r"pynlm/_kernels\.[^/]*\.so",
    r"pynlm/text/_text\.[^/]*\.so",
    r"pynlm/py\.typed",
    r"pynlm/_kernels\.pyi",
    r"pynlm/_csrc/common/fn\.h",
    r"pynlm/_csrc/recurrent/lstm\.h",
    r"pynlm/_csrc/recurrent/lstm_math\.h",
    r"pynlm/_csrc/common/emulated\.cpp",
]
UNWANTED = [
    r".*\.pyx",
    r"(?!pynlm/_csrc/common/emulated).*\.cpp",
    r"(tests|bench|build)/.*",
    r".*__pycache__.*",
]


def main(wheel: str) -> None:
    """Exit with a message if `wheel` (a path) lacks a file or has one too many."""
    names = zipfile.ZipFile(wheel).namelist()
    sources = [*(REPOSITORY / "pynlm").rglob("*.py"), *(REPOSITORY / "pynlm").rglob("*.toml")]
    needed = NEEDED + [re.escape(path.relative_to(REPOSITORY).as_posix()) for path in sources]
    kernels = [
        path for ending in ("cu", "cuh") for path in (REPOSITORY / "csrc").rglob(f"*.{ending}")
    ]
    needed += [
        re.escape(f"pynlm/_csrc/{path.relative_to(REPOSITORY / 'csrc').as_posix()}")
        for path in kernels
    ]
    missing = [want for want in needed if not any(re.fullmatch(want, name) for name in names)]
    extra = [name for name in names if any(re.fullmatch(bad, name) for bad in UNWANTED)]
    if missing or extra:
        sys.exit(f"{wheel}: missing {missing}, not wanted {extra}")
    print(f"{wheel}: {len(names)} files, all that is needed")


if __name__ == "__main__":
    main(sys.argv[1])
