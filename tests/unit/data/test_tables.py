"""The kinds of files that prompts come from: their rows as they are, and what is refused by file and row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.data import DataSet
from configs.refusal import RecipeError
from orchestrator.data.files import lines
from orchestrator.data.files.opening import open_table
from orchestrator.data.files.values import plain
from orchestrator.data.rows import Rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "two + two", "answer": "4", "meta": {"level": 1, "tags": ["a", "b"]}},
    {"prompt": "é\u2028\n😀", "answer": None, "meta": {"level": None, "tags": []}},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOGRATIO_CACHE", str(tmp_path / "cache"))
    yield


def rows(path: Path | str, **entry: Any) -> list[dict[str, Any]]:
    found = DataSet(path=str(path), **entry)
    table = Rows(open_table(found), found)
    return [table[place] for place in range(len(table))]


def refusal(path: Path | str, **entry: Any) -> str:
    with pytest.raises(RecipeError) as refused:
        rows(path, **entry)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def parquet(path: Path, table: Any) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path)
    return path


def test_parquet_keeps_nested_values_nulls_and_every_character(tmp_path: Path) -> None:
    assert rows(parquet(tmp_path / "p.parquet", pa.Table.from_pylist(ROWS))) == ROWS


def test_a_parquet_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    for text in ("old", "new"):
        assert rows(parquet(tmp_path / "p.parquet", {"prompt": [text]})) == [{"prompt": text}]


def test_a_saved_data_set_and_its_splits(tmp_path: Path) -> None:
    import datasets

    train, test = (datasets.Dataset.from_list([{"prompt": name, "answer": 1}]) for name in ("train", "test"))
    train.with_format("numpy").save_to_disk(tmp_path / "one")  # the format is kept, and would give numpy's types
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    assert rows(tmp_path / "one") == rows(tmp_path / "both") == [{"prompt": "train", "answer": 1}]
    assert type(rows(tmp_path / "one")[0]["answer"]) is int
    assert rows(tmp_path / "both", split="test") == rows(f"{tmp_path}/both:test") == [{"prompt": "test", "answer": 1}]
    assert "has no split 'dev'; use one of ['test', 'train']" in refusal(tmp_path / "both", split="dev")
    (tmp_path / "folder").mkdir()
    assert "cannot be read (Is a directory); give a file of" in refusal(tmp_path / "folder")


def test_csv_cells_are_text_and_null_where_they_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_bytes(b'\xef\xbb\xbfprompt,answer,note\r\n"one, ""two""\r\nthree",007,NA\r\n\r\nx,,\r\n')
    assert rows(file) == [
        {"prompt": 'one, "two"\r\nthree', "answer": "007", "note": "NA"},
        {"prompt": "x", "answer": None, "note": None},
    ]
    (tmp_path / "p.tsv").write_text("prompt\tanswer\na,b\tc\n")
    assert rows(tmp_path / "p.tsv") == [{"prompt": "a,b", "answer": "c"}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"prompt,answer\na,b\nc,d,e\n", "p.csv row 2: has 3 cells, the first record 2; quote what holds ','"),
        (b"prompt,answer\na\n", "p.csv row 1: has 1 cells, the first record 2"),
        (b"prompt,prompt\na,b\n", "p.csv: the column 'prompt' stands twice"),
        (b"prompt\n\xff\n", "p.csv row 1: is no UTF-8; save the file as UTF-8"),
        ("prompt,answer\né,b\n\nc,d\n".encode() + b"e,\xe9\n", "p.csv row 3: is no UTF-8"),
        (b"prompt\xff\nx\n", "p.csv line 1: is no UTF-8"),
        ("prompt\nx\n".encode("utf-16"), "p.csv: cannot be read (it is UTF-16); save it as UTF-8"),
        (b"", "p.csv: holds no row"),
        (b"prompt\n", "p.csv: holds no row"),
        (b"question\nx\n", 'p.csv row 1: needs a non-empty "prompt"'),
        (b'prompt\n"never closed\n', "p.csv row 1, from line 2 on: cannot be read (unexpected end of data)"),
        (b'prompt\n"a\nb"\n\n"never\nclosed\n', "p.csv row 2, from line 5 on: cannot be read (unexpected end"),
        (b'"prompt\nx\n', "p.csv line 1: cannot be read (unexpected end of data)"),
    ],
)
def test_a_csv_file_that_pandas_would_guess_at_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    assert said in refusal(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"prompt": pa.array(["x"]), "a": pa.array([float("inf")])}, "p.parquet row 1: holds an infinite number"),
        ({"prompt": pa.array(["x"]), "a": pa.array([b"\xff"])}, "p.parquet row 1: holds bytes that are no UTF-8"),
        ({"prompt": pa.array(["x", None])}, 'p.parquet row 2: needs a non-empty "prompt"; found'),
        ({"prompt": pa.array([], pa.string())}, "p.parquet: holds no row"),
    ],
)
def test_a_parquet_row_that_cannot_be_used_is_named(tmp_path: Path, table: Any, said: str) -> None:
    assert said in refusal(parquet(tmp_path / "p.parquet", table))


def test_text_in_parquet_that_is_no_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    good, bad = b"fine", "\ud83d".encode("utf-8", "surrogatepass")  # half a pair, as some writers leave it
    buffers = [None, pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 4, 7))), pa.py_buffer(good + bad)]
    column = pa.Array.from_buffers(pa.string(), 2, buffers)
    assert "p.parquet row 2: holds text that is no UTF-8" in refusal(
        parquet(tmp_path / "p.parquet", {"prompt": column})
    )


def test_a_file_that_is_no_parquet_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text('{"prompt": "x"}\n')
    assert "p.parquet: cannot be read (ArrowInvalid: " in refusal(tmp_path / "p.parquet")
    (tmp_path / "p.parquet").unlink()
    assert "p.parquet: cannot be read (No such file" in refusal(tmp_path / "p.parquet")


def test_values_that_json_has_no_word_for() -> None:
    import numpy as np

    values = [float("nan"), date(2026, 1, 31), Decimal("1.50"), b"text", np.float32(0.5), np.arange(2), {1: (True,)}]
    assert plain(values) == [None, "2026-01-31", "1.50", "text", 0.5, [0, 1], {"1": [True]}]
    with pytest.raises(ValueError, match="holds a complex, which is no text or number"):
        plain(1j)


def test_lines_with_a_mark_carriage_returns_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    assert rows(tmp_path / "p.jsonl") == [{"prompt": "a"}, {"prompt": "b"}]
    (tmp_path / "bad.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n{"prompt": 1}')
    assert 'bad.jsonl line 3: needs a non-empty "prompt"' in refusal(tmp_path / "bad.jsonl")


def test_a_line_of_a_large_file_is_looked_at_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "WHOLE", 8)
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\nno json\n{"prompt": "d"}\n')
    table = open_table(DataSet(path=str(tmp_path / "p.jsonl")))
    assert (len(table), table[0], table[3]) == (4, {"prompt": "a"}, {"prompt": "d"})
    for place, said in ((1, "line 2: is no UTF-8"), (2, "line 3: is no JSON")):
        with pytest.raises(RecipeError, match=said):
            table[place]


def test_columns_are_renamed_by_name_or_path_and_the_source_is_noted(tmp_path: Path) -> None:
    row = {"question": "q", "reward_model": {"ground_truth": "4"}, "answer": "a long story", "source": None}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    columns = {"prompt": "question", "answer": "reward_model.ground_truth", "solution": "answer", "tests": "nowhere"}
    (found,) = rows(tmp_path / "p.jsonl", columns=columns, source="maths")
    assert found == row | {
        "prompt": "q",
        "answer": "4",
        "solution": "a long story",
        "tests": None,
        "source": "maths",
    }
    assert "data.columns reads it from 'text'" in refusal(tmp_path / "p.jsonl", columns={"prompt": "text"})


def test_the_rows_of_a_large_file_do_not_live_in_memory(tmp_path: Path) -> None:
    """200 MB of text. Once they are converted, nothing but pages of the file is in memory."""
    text = pa.array(["x" * 2000])
    schema = pa.schema({"prompt": pa.string()})
    with pq.ParquetWriter(tmp_path / "p.parquet", schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(pa.table({"prompt": pa.concat_arrays([text] * 5000)}, schema=schema))
    found = DataSet(path=str(tmp_path / "p.parquet"))
    converted = open_table(found)  # kept: what it held would be used again
    before = anonymous()
    table = Rows(open_table(found), found)
    assert sum(len(table[place]["prompt"]) for place in range(0, len(table), 10)) == 10_000 * 2000
    assert len(table) == len(converted) == 100_000 and anonymous() - before < 50 * 2**20


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
