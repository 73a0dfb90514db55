"""``python -m pynlm``: the command line."""

from __future__ import annotations

import sys

from pynlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
