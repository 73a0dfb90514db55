"""Every Python block of the README runs, in order, as one program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)


def test_readme_has_python() -> None:
    assert python_blocks()


def test_python_blocks_run(tmp_path: Path) -> None:
    program = tmp_path / "readme.py"
    program.write_text("\n".join(python_blocks()), encoding="utf-8")
    (tmp_path / "book.txt").write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_commands_exist() -> None:
    """Each ``pynlm COMMAND`` of a shell block is a command, each ``--option`` one of its own."""
    from typer.main import get_command

    from pynlm.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    blocks = re.findall(
        r"^```(?:sh|bash|console)\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M
    )
    for line in "\n".join(blocks).splitlines():
        found = re.search(r"(?:^|[\s|/])pynlm\s+(\w+)(.*)", line.partition("#")[0])
        if found is None:
            continue
        assert found[1] in commands, line
        options = {name for option in commands[found[1]].params for name in option.opts}
        for option in re.findall(r"\s(--[a-z-]+)", found[2]):
            assert option in options | {"--help"}, line
