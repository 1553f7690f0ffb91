"""bf16 learners on real ranks, under DeepSpeed: gradients of many micro-batches against float64."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ALL = ("0", "1", "2", "3", "2+cpu", "3+cpu")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("ranks", "count", "stages"),
    [
        (2, 24, ("0", "3")),
        pytest.param(2, 256, ("2",), marks=pytest.mark.system),
        pytest.param(2, 256, ALL, marks=pytest.mark.acceptance),
        pytest.param(1, 256, ALL, marks=pytest.mark.acceptance),
        pytest.param(3, 32, ALL, marks=pytest.mark.acceptance),
    ],
)
def test_micro_batches_and_ranks_are_added_up_in_float32(
    models: dict[str, Path], tmp_path: Path, ranks: int, count: int, stages: tuple[str, ...]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ops = tmp_path / "ops"
    if not any(stage.endswith("+cpu") for stage in stages):
        environment["TORCH_EXTENSIONS_DIR"] = str(ops)
    asked = [str(ranks), str(port), str(models["student"]), str(count), *stages]
    with ExitStack() as files:
        said = [files.enter_context((tmp_path / f"rank{rank}").open("w+")) for rank in range(ranks)]
        members = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.engines.bf16_ranks", str(rank), *asked],
                stdout=said[rank],
                stderr=subprocess.STDOUT,
                env=environment,
            )
            for rank in range(ranks)
        ]
        for member in members:
            files.callback(member.kill)  # those of a test that is cut off would go on
        codes = [member.wait() for member in members]
    output = (tmp_path / "rank0").read_text()
    assert codes == [0] * ranks, output[-2000:]
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"stage"')]
    assert [line["stage"] for line in lines] == list(stages)
    for line in lines:
        assert len(line["errors"]) == (1 if line["stage"].endswith("+cpu") else 3)
        assert all(error < 1e-5 for error in line["errors"]), line
        assert all(abs(norm) < 1e-5 for norm in line["norms"]), line
    assert not ops.exists(), "DeepSpeed compiles nothing but an off-loaded optimizer's op"
