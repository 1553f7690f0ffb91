"""`python -m benchmarks` lists the benchmarks; `python -m benchmarks NAME [arguments]` runs one."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path


def main() -> int:
    here = Path(__file__).parent
    found = {file.stem: file for file in sorted(here.glob("[!_]*.py"))}
    found |= {file.parent.name: file for file in sorted(here.glob("*/__main__.py"))}
    if len(sys.argv) > 1 and sys.argv[1] in found:
        name = sys.argv.pop(1)
        package = found[name].stem == "__main__"
        runpy.run_module(f"benchmarks.{name}{'.__main__' * package}", run_name="__main__", alter_sys=True)
        return 0
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        print(f"benchmarks: no {sys.argv[1]!r}; there are: {', '.join(found) or 'none'}", file=sys.stderr)
        return 2
    print(__doc__)
    for name, file in found.items():
        print(f"  {name:16} {summary(file)}")
    return 0


def summary(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
