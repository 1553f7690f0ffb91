"""The sandbox from outside: how cases end, what is left of them, and when it refuses to start."""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from dataclasses import replace

import psutil
import pytest

from rewards.sandbox import isolation as isolation_module
from rewards.sandbox import view
from rewards.sandbox.inside import init
from rewards.sandbox.isolation import NoIsolation, isolation
from rewards.sandbox.limits import Limits
from rewards.sandbox.mechanisms import Mechanism
from rewards.sandbox.run import Ending, SandboxError, run

LIMITS = Limits(cpu_seconds=10, wall_seconds=30.0)

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("/tmp/started", "w").close()
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", TOKEN])
    os._exit(0)
while not os.path.exists("/tmp/started"):
    time.sleep(0.01)
print(input())
"""

FORKS = """
import os, time
made = 0
try:
    while made < 50:
        if os.fork() == 0:
            time.sleep(10)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""


def only(mechanism: Mechanism, program: str, limits: Limits = LIMITS, **case: str) -> Ending:
    (ending,) = run(mechanism, program, [case or {"input": ""}], limits)
    return ending


def processes_with(token: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if token in (p.info["cmdline"] or [])]


def test_each_mechanism_isolates(each_mechanism: Mechanism) -> None:
    endings = list(run(each_mechanism, "def f(x): return x + 1", [{"call": "f(1)"}, {"call": "f('')"}], LIMITS))
    assert [(one.end, one.code, one.value) for one in endings] == [("exit", 0, "2"), ("exit", 1, "")]
    assert "TypeError" in endings[1].stderr and "rewards" not in endings[1].stderr


def test_a_daemon_of_a_program_that_may_fork_does_not_outlive_its_case(each_mechanism: Mechanism) -> None:
    token = secrets.token_hex(8)
    program = f"TOKEN = {token!r}\n{DAEMON}"
    with closing(run(each_mechanism, program, [{"input": "done"}] * 2, replace(LIMITS, processes=6))) as endings:
        assert next(endings).stdout == "done\n"
        assert processes_with(token) == []  # while the sandbox lives


def test_as_many_processes_as_allowed(mechanism: Mechanism) -> None:
    assert only(mechanism, FORKS, replace(LIMITS, processes=4)).stdout in ("4\n", "5\n")
    assert only(mechanism, FORKS).stdout == "0\n"


@pytest.mark.parametrize(
    ("end", "program", "limits"),
    [
        ("cpu", "while True: pass", replace(LIMITS, cpu_seconds=1)),
        ("wall", "import time; time.sleep(100)", replace(LIMITS, wall_seconds=0.1)),
        ("output", "print('x' * 1001)", replace(LIMITS, output_bytes=1000)),
        ("signal", "import os; os.abort()", LIMITS),
        ("total", "import time; time.sleep(100)", replace(LIMITS, total_seconds=0.1)),
    ],
)
def test_endings(mechanism: Mechanism, end: str, program: str, limits: Limits) -> None:
    assert only(mechanism, program, limits).end == end


def test_what_a_program_may_still_do(mechanism: Mechanism) -> None:
    assert only(mechanism, "print('x' * 999)", replace(LIMITS, output_bytes=1000)).end == "exit"
    assert only(mechanism, "print(input())", input="ä\0 \u2028").stdout == "ä\0 \u2028\n"
    assert only(mechanism, "print(len(input()))", input="\ud800").stdout == "3\n"  # the bytes of no character
    assert only(mechanism, "x = bytearray(100 * 2**20); print(len(x))").stdout == "104857600\n"
    assert (
        only(mechanism, "print(open('/dev/urandom', 'rb').read(0), sum(map(int, input())))", input="1" * 10**5).code
        == 0
    )


def test_cases_share_no_state(mechanism: Mechanism) -> None:
    program = (
        "import os\nn = 0\ndef f():\n    global n\n    n += 1\n    open('x', 'x')\n    return [n, os.listdir('.')]"
    )
    assert [one.value for one in run(mechanism, program, [{"call": "f()"}] * 3, LIMITS)] == ['[1, ["x"]]'] * 3


def test_a_closed_iterator_ends_the_sandbox(mechanism: Mechanism) -> None:
    began = time.monotonic()
    with closing(
        run(mechanism, "import time; time.sleep(int(input()))", [{"input": "0"}, {"input": "99"}], LIMITS)
    ) as all_:
        assert next(all_).end == "exit"
    assert time.monotonic() - began < 20


def test_a_sandbox_that_does_not_start_is_an_error_and_no_answer(mechanism: Mechanism) -> None:
    broken = replace(mechanism, command=lambda disk, job: ["/bin/sh", "-c", "echo no luck >&2; exit 1"])
    with pytest.raises(SandboxError, match="no luck"):
        only(broken, "print(1)")
    with pytest.raises(SandboxError, match="No such file"):
        only(replace(mechanism, command=lambda disk, job: ["/nothing"]), "print(1)")


def test_without_walls_it_refuses(mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no mechanism but one that does not hold, nothing runs."""

    def open_air(disk_mib: int, job: int) -> list[str]:
        return ["/bin/sh", "-c", "echo no walls >&2; exit 1"]

    bare = Mechanism("bare", lambda: "", open_air)
    monkeypatch.setattr(isolation_module, "MECHANISMS", (bare, Mechanism("other", lambda: "not here", open_air)))
    with pytest.raises(NoIsolation, match=r"bare: no walls.*other: not here.*install bubblewrap"):
        isolation.__wrapped__()


def test_only_the_first_process_of_a_pid_namespace_ends_all_others() -> None:
    with pytest.raises(SystemExit, match="no pid namespace"):
        init._alone()


def test_nothing_but_the_interpreter_is_visible(each_mechanism: Mechanism) -> None:
    program = "import os\nprint(*sorted(os.listdir('/')), *sorted(os.listdir('/usr')), *sorted(os.listdir('/etc')))"
    seen = set(only(each_mechanism, program).stdout.split())
    prefix = {part for path in view.shown() for part in path.split("/")[1:3]}
    assert seen and seen <= {"dev", "tmp", "sandbox", "lib", "lib64", "share", "ld.so.cache", "bin", *prefix}
