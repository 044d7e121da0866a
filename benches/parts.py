"""What the benchmarks share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.dont_write_bytecode = True


def bench(name: str):
    """Another of the benchmarks, whose parts are used."""
    loader = SourceFileLoader(name, str(ROOT / "benches" / name))
    module = module_from_spec(spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def sayer(name: str):
    """Says on standard error what a benchmark is about."""
    return lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)


def available(which: str) -> int:
    """Bytes, of a line of /proc/meminfo."""
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(which + ":"))


class FullMemory:
    """Keeps memory in use that nobody needs: a page cache full of a sparse file's zeros, which whoever needs memory gets. Free memory
    of a virtual machine may have gone back to its host, and the first touch of it then costs many times as much."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.bytes = available("MemTotal")
        self.at = 0
        self.file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        os.truncate(self.file.fileno(), 4 * self.bytes)
        kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True).stdout.strip()
        if kind in ("tmpfs", "ramfs"):
            print(f"NOTE: {folder} is a memory file system: the page cache can't be filled from there; set TMPDIR to a disk",
                  file=sys.stderr, flush=True)

    def fill(self) -> None:
        """Reads what was not read lately."""
        buffer = bytearray(1 << 20)
        for _ in range(self.bytes // 2 // len(buffer)):
            os.preadv(self.file.fileno(), [buffer], self.at)
            self.at = (self.at + len(buffer)) % (4 * self.bytes - len(buffer))
