"""Print pip's configuration as shell exports of uv's variables: uv does not read pip's configuration."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys

VARIABLES = {
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "cert": "SSL_CERT_FILE",
}
SEPARATORS = {"find-links": ","}  # elsewhere a space, as in pip


def main() -> None:
    # pip takes the best version of all indexes; uv by default stops at the first index that has the package.
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option, value in pip_options().items():
        if option in VARIABLES:
            settings[VARIABLES[option]] = SEPARATORS.get(option, " ").join(value.split())
    for variable, value in settings.items():
        if value and variable not in os.environ:
            print(f"export {variable}={shlex.quote(value)}")


def pip_options() -> dict[str, str]:
    """Options with pip's precedence: environment, then the command's section, then the global one."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in lines:
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        sections.get(section, {})[option] = ast.literal_eval(value)
    return {**sections["global"], **sections["install"], **sections[":env:"]}


if __name__ == "__main__":
    main()
