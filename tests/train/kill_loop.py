"""Kill training processes with SIGKILL at random moments until one gets through; compare the bits.

    python tests/train/kill_loop.py --kills 100

trains a small model without a break, then again with up to so many kills and resumes, and
exits with 0 if both gave the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = {
    "name": "kill",
    "model": {"embedding_size": 16, "hidden_sizes": [24, 24], "dropout_between": 0.3},
    "train": {"batch_size": 4, "bptt": 10, "clip_norm": 1.0, "checkpoint_seconds": 0.02},
    "optimiser": {"kind": "adam", "lr": 0.01},
}


def child(out: str, text: str, valid: str, epochs: int) -> None:
    """Train, or go on training, in `out`."""
    from pynlm.train import Trainer

    started = time.monotonic()

    def slowly(_: object) -> None:
        # Long enough for kills to find all parts of a run, however fast the machine is.
        time.sleep(0.005)

    Trainer(
        RECIPE,
        text=text,
        valid=valid,
        out=out,
        overrides={"train.epochs": epochs},
        resume=True,
        quiet=True,
        on_step=slowly,
    ).run()
    print(time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="at most so many")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.epochs)
        return 0
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, lines in (("text", 150), ("valid", 20)):
            words = [" ".join(rng.choice("abcdefgh") for _ in range(6)) for _ in range(lines)]
            (folder / split).write_text("\n".join(words) + "\n", encoding="utf-8")

        def start(run: str) -> subprocess.Popen[str]:
            texts = [str(folder / run), str(folder / "text"), str(folder / "valid")]
            command = [sys.executable, __file__, "--epochs", str(arguments.epochs)]
            return subprocess.Popen(
                [*command, "--child", *texts], stdout=subprocess.PIPE, text=True
            )

        began = time.monotonic()
        whole = start("whole")
        said, _ = whole.communicate()
        if whole.returncode:
            return 1
        training = float(said)
        importing = time.monotonic() - began - training
        kills = 0
        while True:
            process = start("killed")
            # The last process may finish once there have been enough kills.
            wait = importing + rng.uniform(0.0, 2.5 * training / max(arguments.kills, 1))
            try:
                process.communicate(timeout=wait if kills < arguments.kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                continue
            if process.returncode:
                return 1
            break
        digests = [
            {
                which: hashlib.sha256((folder / run / which / file).read_bytes()).hexdigest()
                for which in ("last", "best")
                for file in ("model.safetensors",)
            }
            for run in ("whole", "killed")
        ]
        same = digests[0] == digests[1]
        print(f"{kills} kills: {'bit-identical' if same else 'DIFFERENT'} {digests[1]}")
        return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
