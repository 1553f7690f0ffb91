"""Which files of the machine a program sees: the interpreter, its standard library and the libraries that they load."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])  # the folder that the package `rewards` lies in
INSIDE = str(Path(__file__).parent / "inside")


def interpreter() -> str:
    """The interpreter behind a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def shown() -> list[str]:
    """Absolute paths, to be shown read-only; no path lies in another. Links among them stay links."""
    prefix = sys.base_prefix
    wanted = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", interpreter()]
    wanted += [f"{prefix}/lib", f"{prefix}/lib64", os.path.dirname(os.__file__)]
    wanted += ["/nix/store"] if prefix.startswith("/nix/") else []
    there = sorted({path for path in wanted if os.path.exists(path)})
    return [path for path in there if not any(path.startswith(f"{other}/") for other in there)]
