"""Names of models and data sets on the Hugging Face Hub: `owner/name`, `owner/name@revision`, `owner/name:split`.

A recipe's files are read with such names spelt `hub:owner/name`; before a run they are pinned to a commit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

HUB = "hub:"
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_NAME = re.compile(
    rf"(?P<owner>{_PART})/(?P<name>{_PART})(/(?P<subset>{_PART}))?(@(?P<revision>{_PART}))?(:(?P<split>\w+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".yaml", ".gz", ".arrow")


@dataclass(frozen=True)
class HubName:
    """`subset` is a data set's configuration, `revision` a branch, tag or commit; empty: the default."""

    owner: str
    name: str
    subset: str = ""
    revision: str = ""
    split: str = ""

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        subset = f"/{self.subset}" if self.subset else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.repository}{subset}{revision}" + (f":{self.split}" if self.split else "")


def hub_name(path: str) -> HubName | None:
    """The name that `hub:...` spells; None for any other path."""
    found = _NAME.fullmatch(path.removeprefix(HUB)) if path.startswith(HUB) else None
    return HubName(**{key: value or "" for key, value in found.groupdict().items()}) if found else None


def may_be_on_the_hub(path: str, folder: Path) -> bool:
    """Whether a path of a recipe in `folder` reads as a name on the Hub: it names no file that is there, and does not
    end as a file does."""
    bare = path.rpartition(":")[0] or path
    if _NAME.fullmatch(path) is None or bare.lower().endswith(_FILES):
        return False
    try:
        return not (folder / path).exists() and not (folder / bare).exists()
    except (OSError, ValueError):
        return False


def snapshot(name: HubName) -> Path:
    """Where the Hub's own cache keeps a model at a commit."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return cache / f"models--{name.owner}--{name.name}" / "snapshots" / (name.revision or "main")


def same_source(recorded: object, submitted: object) -> bool:
    """Whether a recorded value is a submitted one with its revisions pinned."""
    if isinstance(recorded, dict) and isinstance(submitted, dict):
        return recorded.keys() == submitted.keys() and all(same_source(recorded[k], submitted[k]) for k in recorded)
    if isinstance(recorded, list) and isinstance(submitted, list):
        return len(recorded) == len(submitted) and all(map(same_source, recorded, submitted))
    if not isinstance(recorded, str) or not isinstance(submitted, str) or recorded == submitted:
        return recorded == submitted
    old, new = hub_name(recorded), hub_name(submitted)
    return bool(old and new and not new.pinned and replace(old, revision=new.revision) == new)
