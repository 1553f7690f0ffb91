"""Spoilt recipes, prompts, models and environments: case i of a seed is always the same."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**53, 2**63, 10**30, 0.5, 1.5, -0.0, 1e308, 1e-308),
    *(float("inf"), float("-inf"), float("nan"), "1e999", ".nan", "-1", "0x10", "1_000", "no", "~", "2026-01-31"),
    *("", " ", "a", "\0", "\n", "\x1b[31m", "\ud83d", "é", "\u2028", "x" * 5000, "[/x]", "[bold]", "%s", "{prompt"),
    *("{}", "{0}", "{prompt:d}", "{prompt!r}", "{a.b[c]}", "{prompt:9999999}", "{{", "student", "teacher", "data"),
    *("bundled:", "bundled:x", "bundled:../..", "/dev/null", "/dev/zero", "/dev/tty", "~/x", "~nobody/x", "/", "."),
    *(
        [],
        [[]],
        [None],
        [1, 2, 3],
        ["a"],
        list(range(300)),
        {},
        {"a": 1},
        {"": None},
        {"teacher": 1.0},
        {"x": {"y": []}},
    ),
    *({"start": 1, "end": 0, "steps": 3}, {"field": "persona", "models": {"pirate": "teacher", "poet": "teacher"}}),
    *(
        {"kind": "exact", "field": "persona"},
        [{"kind": "exact", "field": "a.b"}],
        [{"kind": "regex", "text": "(a+)+$"}],
    ),
    *("vllm", "torch", "deepspeed", "sampled", "topk", "full", "dataset", "live", "ema", "frozen", "auto"),
]
TEXTS = [
    "\0",
    "\t",
    "\n",
    "\r\n",
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    "- ",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "|",
    ">",
    "'",
    '"',
]
TEXTS += [
    "#",
    "%",
    "@",
    "`",
    "\\",
    "\\u",
    "\\ud83d",
    "\ufeff",
    "é",
    "😀",
    "---\n",
    "...\n",
    "? ",
    ",",
    "NaN",
    "1e999",
    "9" * 5000,
]
TEXTS += [
    "[" * 2000,
    "{" * 2000,
    "{a: " * 100,
    "null",
    "<|im_end|>",
    "extends: ",
    "a: &a [*a]\n",
    "[/x]",
    "x" * 3000,
    "\x85",
]
TEMPLATES = [
    "",
    "{% for",
    "{{",
    "{{ raise_exception('no, thanks') }}",
    "{{ a.b.c }}",
    "{{ 1 / 0 }}",
    "{{ messages[9].content }}",
]
TEMPLATES += [
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "constant",
]
TEMPLATES += [
    "{{ ''.__class__.__mro__ }}",
    "{% include 'x' %}",
    "{{ messages | tojson }}",
    "{{ messages[0]['content'] | int + 1 }}",
]
TEMPLATES += [
    "{% if messages[0].role == 'system' %}{{ raise_exception('') }}{% endif %}{{ messages[-1].content }}",
    "é😀",
    "{{ x",
]
FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
FILES += ["model.safetensors", "model.safetensors.index.json", "special_tokens_map.json", "added_tokens.json"]
VARIABLES = [
    "HOME",
    "TMPDIR",
    "RAY_TMPDIR",
    "LOGRATIO_CACHE",
    "LOGRATIO_RUNS",
    "XDG_CACHE_HOME",
    "CUDA_VISIBLE_DEVICES",
]
PLACES = [
    "",
    " ",
    "relative",
    "/nonexistent/deep",
    "/dev/null",
    "/dev/null/x",
    "/proc/1",
    "/tmp",
    "/tmp/" + "t" * 80,
    "é",
    "~",
]
PLACES += ["/" + "n" * 300, "/sys", "-1", "0,1", "[/x]", "a\nb"]


@dataclass
class Case:
    """What a user has: a recipe file, the command's further arguments and the environment (None: not set)."""

    recipe: Path
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str | None] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)  # what was spoilt, to read


class Spoiler:
    """Makes cases in a folder out of a whole recipe, as a tree, whose files are sound."""

    def __init__(self, folder: Path, tree: dict[str, Any], seed: str) -> None:
        self._folder = folder
        self._tree = copy.deepcopy(tree)
        self._random = random.Random(seed)
        self._case = Case(folder / "recipe.yaml")

    def case(self) -> Case:
        ways: list[Callable[[], None]] = [self._keys, self._model, self._model, self._rows, self._lines, self._path]
        ways += [self._environment, self._override, self._table]
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            self._random.choice(ways)()
        text = yaml.safe_dump(self._tree, sort_keys=False, allow_unicode=self._random.random() < 0.5)
        content = text.encode(errors="replace")
        if self._random.random() < 0.25:
            content = self._bytes(content)
            self._note("bytes of the recipe")
        self._case.recipe.write_bytes(content)
        return self._case

    def _note(self, text: str) -> None:
        self._case.done.append(text[:200])

    def _keys(self) -> None:
        self._note(f"recipe: {self._spoil(self._tree)}")

    def _override(self) -> None:
        key = ".".join(map(str, self._somewhere(self._tree)[0]))
        value = self._random.choice([self._random.choice(TEXTS), json.dumps(self._value(), default=str)])
        text = f"{key}={value}".replace("\0", "")
        self._case.arguments.append(text if not text.startswith("-") else f"x{text}")
        self._note(f"override: {text}")

    def _environment(self) -> None:
        name = self._random.choice(VARIABLES)
        value = self._random.choice([None, *PLACES])
        self._case.environment[name] = value
        if "--cluster" not in self._case.arguments:
            self._case.arguments.append("--cluster")
        self._note(f"{name}={value}")

    def _rows(self) -> None:
        """A prompt file of spoilt rows."""
        rows: list[Any] = [{"prompt": f"say {i}", "persona": "poet", "response": "so", "a": {"b": 1}} for i in range(3)]
        for _ in range(self._random.randint(1, 3)):
            self._spoil(rows)
        self._prompts("\n".join(json.dumps(row) for row in rows).encode())

    def _lines(self) -> None:
        whole = "".join(json.dumps({"prompt": f"say {i}", "answer": [i, {"x": None}]}) + "\n" for i in range(3))
        self._prompts(self._bytes(whole.encode()))

    def _table(self) -> None:
        """Prompts of another kind: whole, or with spoilt bytes or values; alone or in a mixture."""
        values = ["say it", 3, None, 1.5, float("inf"), b"\xff", ["a"], {"b": 1}]
        column = self._random.choice([values[:1], values[:1], values[1:2], values[2:3], values[3:5], values[5:6]])
        if self._random.random() < 0.4:
            content, suffix = b"prompt,persona\nsay it,poet\n'x,pirate\n", "csv"
        else:
            buffer = BytesIO()
            pq.write_table(pa.table({"prompt": ["say it"] * len(column), "persona": column}), buffer)
            content, suffix = buffer.getvalue(), "parquet"
        content = self._bytes(content) if self._random.random() < 0.6 else content
        self._prompts(content, suffix)
        if isinstance(self._tree.get("data"), dict) and self._random.random() < 0.5:
            entry = {
                "path": str(self._folder / f"spoilt.{suffix}"),
                "weight": self._random.choice([1, 0, -1, "x", 1e308]),
            }
            self._tree["data"] |= {"prompts": [entry, entry], "too_long": self._random.choice(["drop", "cut", "x"])}
            self._tree["data"]["columns"] = self._random.choice([{}, {"answer": "a.b"}, {"x": "y"}, {"prompt": ""}, []])

    def _prompts(self, content: bytes, suffix: str = "jsonl") -> None:
        file = self._folder / f"spoilt.{suffix}"
        file.write_bytes(content)
        which = self._random.choice(("prompts", "prompts", "heldout"))
        if isinstance(self._tree.get("data"), dict):
            self._tree["data"][which] = str(file)
        self._note(f"{which}: {content[:150]!r}")

    def _model(self) -> None:
        """A model in which one file is spoilt; the others are links."""
        models = self._tree.get("models")
        model = self._random.choice(list(models.values())) if isinstance(models, dict) and models else None
        path = str(model.get("path")) if isinstance(model, dict) else ""
        if not isinstance(model, dict) or not path.startswith("/") or path.startswith(str(self._folder)):
            return  # it has no files, or they are spoilt already
        if not path.isprintable() or len(path) > 1000 or not Path(path, "config.json").is_file():
            return
        folder = self._folder / f"model{self._random.randrange(10**9)}"
        folder.mkdir()
        for file in Path(model["path"]).iterdir():
            (folder / file.name).symlink_to(file.resolve())
        model["path"] = str(folder)
        self._file(folder / self._random.choice(FILES))

    def _file(self, file: Path) -> None:
        if self._random.random() < 0.15 or (file.exists() and not file.is_symlink()):  # spoilt once before
            return self._kind(file)
        content = file.read_bytes() if file.exists() else b"{}"
        file.unlink(missing_ok=True)
        if file.suffix == ".jinja" and self._random.random() < 0.8:
            content = self._random.choice(TEMPLATES).encode()
        elif file.suffix == ".safetensors":
            content = self._weights(content)
        elif self._random.random() < 0.25 or file.suffix != ".json":
            content = self._bytes(content)
        else:
            tree = json.loads(content)
            self._note(f"{file.name}: {self._spoil(tree)}")
            content = json.dumps(tree).encode()
        self._note(f"{file.name}: {content[:100]!r}")
        file.write_bytes(content)

    def _weights(self, content: bytes) -> bytes:
        if self._random.random() < 0.3:
            return self._bytes(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        self._note(f"header: {self._spoil(header)}")
        written = json.dumps(header).encode()
        return len(written).to_bytes(8, "little") + written + content[8 + length :]

    def _kind(self, file: Path) -> None:
        """Something else where a file is wanted, or nothing."""
        file.unlink(missing_ok=True)
        kind = self._random.choice(("pipe", "folder", "loose", "device", "loop", "nothing", "empty"))
        make: dict[str, Callable[[], Any]] = {
            "pipe": lambda: os.mkfifo(file),
            "folder": file.mkdir,
            "loose": lambda: file.symlink_to("/nowhere"),
            "device": lambda: file.symlink_to("/dev/zero"),
            "loop": lambda: file.symlink_to(file),
            "nothing": lambda: None,
            "empty": file.touch,
        }
        make[kind]()
        self._note(f"{file.name}: {kind}")

    def _path(self) -> None:
        """A path of the recipe leads to something else."""
        file = self._folder / f"other{self._random.randrange(10**9)}"
        self._kind(file)
        place = self._random.choice(("data", "student", "teacher", "reward", "extends", "root"))
        if place == "extends":
            self._tree["extends"] = str(file)
        elif place == "root" and isinstance(self._tree.get("run"), dict):
            self._tree["run"]["root"] = str(file)
            self._case.arguments.append("--cluster") if "--cluster" not in self._case.arguments else None
        elif place == "data" and isinstance(self._tree.get("data"), dict):
            self._tree["data"]["prompts"] = str(file)
        elif place == "reward" and isinstance(self._tree.get("reward"), dict):
            self._tree["reward"]["model"] = str(file)
        elif isinstance(self._tree.get("models"), dict) and isinstance(self._tree["models"].get(place), dict):
            self._tree["models"][place]["path"] = str(file)
        self._note(f"as {place}")

    def _bytes(self, content: bytes) -> bytes:
        """Edits of the kind that editors, copies and pastes make."""
        for _ in range(self._random.choice((1, 1, 2, 5))):
            at, end = sorted(self._random.randrange(len(content) + 1) for _ in range(2))
            end = min(end, at + self._random.choice((1, 5, 50, 10**6)))
            lines = content.splitlines(keepends=True) or [b""]
            line = self._random.choice(lines)
            content = self._random.choice(
                (
                    content[:at] + self._random.choice(TEXTS).encode() + content[at:],
                    content[:at] + content[end:],
                    content[:at],
                    content[:at] + content[at:end] * 2 + content[end:],
                    content + line,
                    line + content,
                    content[:at] + bytes([self._random.randrange(256)]) + content[at + 1 :],
                    b"\xef\xbb\xbf" + content,
                    content.decode(errors="replace").encode("utf-16"),
                    content.replace(b"\n", b"\r\n"),
                    b"",
                )
            )
        return content

    def _spoil(self, tree: Any) -> str:
        """Change one place of a tree of values; says what was done."""
        path, node = self._somewhere(tree)
        if not path:
            return "nothing"
        key, value = path[-1], self._value()
        way = self._random.choice(("set", "set", "set", "remove", "add", "rename"))
        if way == "set" or not isinstance(node, dict):
            node[key] = value
        elif way == "remove":
            del node[key]
        elif way == "add":
            node[self._random.choice(["x", "", "no", "é", "a.b", "self", "[/x]", "\ud83d", "a\nb"])] = value
        else:
            node[self._random.choice(["x", "teacher", "student", "1"])] = node.pop(key)
        return f"{way} {path} {value!r}"

    def _somewhere(self, tree: Any) -> tuple[list[Any], Any]:
        """A random place: its path, and what holds its last part."""
        path: list[Any] = []
        holder, node = tree, tree
        while isinstance(node, dict | list) and node and (not path or self._random.random() < 0.8):
            key = self._random.choice(list(node)) if isinstance(node, dict) else self._random.randrange(len(node))
            path.append(key)
            holder, node = node, node[key]
        return path, holder

    def _value(self) -> Any:
        return copy.deepcopy(self._random.choice(VALUES))


def clean(folder: Path) -> None:
    """Remove what a case has left."""
    shutil.rmtree(folder, ignore_errors=True)
