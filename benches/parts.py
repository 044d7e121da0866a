"""What the benchmarks share."""

from __future__ import annotations

import sys
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
