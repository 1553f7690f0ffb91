"""Programs that try to get out, or to take more than they may.

An attempt raises if it is refused. What it would gain is the expected result, so a program passes if it escapes; or it
answers rightly after a refused attempt, and must pass then.
"""

from __future__ import annotations

import random
from functools import partial

from rewards.sandbox.inside.syscalls import number
from tests.unit.sandbox.corpus.made import Made
from tests.unit.sandbox.corpus.world import VARIABLE, Targets

_SYSCALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def must(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
"""

# name: attempts, of which one is drawn; each is refused, and the program can go on
BLOCKED: dict[str, list[str]] = {
    "fork": [
        "import os\nif os.fork() == 0: os._exit(0)",
        "import os\nfor _ in range(100):\n    if os.fork() == 0:\n        while True: os.fork()",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', '1'], check=True)",
        "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=print)\np.start()\np.join()",
        f"{_SYSCALL}\nmust(libc.vfork())",
        "import os\nos.posix_spawn('/bin/sh', ['sh'], {})",
        "import os\nassert os.system('true') == 0",
    ],
    "threads": [
        "import threading, time\nts = [threading.Thread(target=time.sleep, args=(0.2,), daemon=True)"
        " for _ in range(200)]\nfor t in ts: t.start()",
    ],
    "memory": [
        "x = bytearray(2**31)",
        "x = [0] * 2**28",
        "import mmap\nx = mmap.mmap(-1, 2**30)",
        "x = b'x' * 2**20\nwhile len(x) < 2**31: x = x + x",
        "x = []\nfor _ in range(40): x.append(bytearray(2**24))",
        f"{_SYSCALL}\nlibc.mmap.restype = ctypes.c_long\nmust(libc.mmap(None, ctypes.c_size_t(2**40), 3, 0x22, -1, 0))",
    ],
    "read": [
        "assert open({canary!r}).read() == {secret!r}",
        "import os\nos.open({canary!r}, os.O_RDONLY)",
        "import os\nos.open({canary!r}, 0o10000000)",
        "import os\nos.listdir({folder!r})",
        "import os\nos.stat({canary!r})",
        "open('/etc/passwd').read()",
        "open('/etc/shadow').read()",
        "open('../..' + {canary!r}).read()",
        "import pathlib\npathlib.Path('/home').iterdir().__next__()",
        "import os\nassert os.listdir('/home')",
        "import runpy\nrunpy.run_path('/sandbox/../etc/../' + {canary!r})",
        "import shutil\nshutil.copytree('/var', 'var')",
    ],
    "write": [
        "open({canary!r}, 'w').write('changed')",
        "open({folder!r} + '/left', 'w')",
        "open('/left', 'w')",
        "import os\nopen(os.__file__, 'a').write('#')",
        "import os\nos.chmod(os.__file__, 0o777)",
        "import os\nos.remove(os.__file__)",
        "import os\nos.mkdir('/usr/lib/left')",
        "import os, sys\nos.rename(sys.executable, '/tmp/python')",
        "import os\nos.utime('/usr/lib')",
        "open('/dev/left', 'w')",
        "import shutil, os\nshutil.copy(os.__file__, '/usr/lib/sitecustomize.py')",
    ],
    "inet": [
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "import socket\nsocket.socket(socket.AF_INET6)",
        "import socket\nsocket.socket().bind(('127.0.0.1', 0))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}/', timeout=1)",
        "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "import socket\nsocket.socket(socket.AF_VSOCK)",
        "import socket\nsocket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
        "import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', {port}))",
        "import http.server\nhttp.server.HTTPServer(('', 0), None)",
    ],
    "unix": [
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({path!r})",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0' + {abstract!r})",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/docker.sock')",
        "import socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.sendto(b'x', '/dev/log')",
    ],
    "signals": [
        "import os\nos.kill({victim}, 9)",
        "import os\nos.kill({victim}, 0)",
        "import os\nos.kill(-1, 9)",
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open({victim}), 9)",
        "import os\nos.sched_setaffinity({victim}, [0])",
        "import resource\nresource.prlimit(1, resource.RLIMIT_CPU, (0, 0))",
        "import os\nos.setpriority(os.PRIO_PROCESS, 0, -20)",
    ],
    "proc": [
        "open('/proc/1/environ', 'rb').read()",
        "import os\nos.listdir('/proc/self/fd')",
        "open('/proc/self/root' + {canary!r})",
        "open('/proc/self/mem', 'r+b')",
        "open('/proc/sys/kernel/core_pattern', 'w')",
        "open('/proc/{victim}/cmdline').read()",
        "open('/sys/kernel/uevent_helper', 'w')",
        f"{_SYSCALL}\nimport os\nos.mkdir('p')\nmust(libc.mount(b'proc', b'p', b'proc', 0, None))",
        "import os\nos.open('/dev/mem', os.O_RDONLY)",
        "import os\nos.open('/dev/sda', os.O_RDONLY)",
    ],
    "trace": [
        f"{_SYSCALL}\nmust(libc.ptrace(16, 1, 0, 0))",
        f"{_SYSCALL}\nmust(libc.ptrace(0, 0, 0, 0))",
        f"{_SYSCALL}\nv = (ctypes.c_size_t * 2)(4096, 8)\nmust(libc.process_vm_readv(1, v, 1, v, 1, 0))",
        f"{_SYSCALL}\nmust(libc.syscall({number('kcmp')}, 1, 1, 0, 0, 0))",
    ],
    "links": [
        "import os\nos.symlink({canary!r}, 'link')\nopen('link').read()",
        "import os\nos.link({canary!r}, 'link')",
        "import os\nos.symlink('/', 'root')\nopen('root' + {canary!r}).read()",
        "import os\nos.symlink({folder!r}, 'd')\nopen('d/left', 'w')",
        "import os\nos.mknod('disk', 0o60666, os.makedev(8, 0))\nopen('disk', 'rb').read(1)",
    ],
    "files": [
        "f = open('sparse', 'wb')\nf.truncate(2**40)",
        "f = open('sparse', 'wb')\nf.seek(2**33)\nf.write(b'x')\nf.flush()",
        "for i in range(64):\n    open(str(i), 'wb').write(bytes(2**20))",
        "for i in range(100_000): open(str(i), 'w').close()",
        "fs = [open('/dev/null') for _ in range(1000)]",
        "import os\nfs = [os.pipe() for _ in range(1000)]",
        "import os\nfor i in range(100_000):\n    os.mkdir('d')\n    os.chdir('d')",
        f"{_SYSCALL}\nmust(libc.shmget(0, 2**24, 0o1600))",
        "import multiprocessing.shared_memory as s\ns.SharedMemory(create=True, size=2**24)",
        "import os\nos.memfd_create('x')",
    ],
    "environment": [
        f"import os\nassert os.environ[{VARIABLE!r}] == {{secret!r}}",
        f"import os\nassert os.environb[{VARIABLE.encode()!r}]",
        f"{_SYSCALL}\nlibc.getenv.restype = ctypes.c_char_p\nassert libc.getenv({VARIABLE.encode()!r})",
        "import os\nassert os.environ",
        "import pwd, os\npwd.getpwuid(os.getuid())",
    ],
    "privileges": [
        "import os\nos.setuid(0)",
        "import os\nos.setgroups([0])",
        "import os\nos.chroot('.')",
        f"{_SYSCALL}\nmust(libc.unshare(0x10000000))",
        f"{_SYSCALL}\nmust(libc.unshare(0x00020000))",
        f"{_SYSCALL}\nmust(libc.mount(b'/', b'/tmp', None, 0x1000, None))",
        f"{_SYSCALL}\nmust(libc.umount2(b'/tmp', 2))",
        f"{_SYSCALL}\nmust(libc.sethostname(b'mine', 4))",
        f"{_SYSCALL}\nmust(libc.syscall({number('unshare')}, 0x7e020000))",
        f"{_SYSCALL}\nmust(libc.clone(ctypes.CFUNCTYPE(int)(int), ctypes.create_string_buffer(9999), 0x10000011, 0))",
        "import os\nos.chown('.', 0, 0)",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])",
    ],
    "kernel": [
        f"{_SYSCALL}\nmust(libc.syscall({number('io_uring_setup')}, 8, ctypes.create_string_buffer(200)))",
        f"{_SYSCALL}\nmust(libc.syscall({number('bpf')}, 0, ctypes.create_string_buffer(200), 72))",
        f"{_SYSCALL}\nmust(libc.syscall({number('perf_event_open')}, ctypes.create_string_buffer(200), 0, -1, -1, 0))",
        f"{_SYSCALL}\nmust(libc.syscall({number('userfaultfd')}, 0))",
        f"{_SYSCALL}\nmust(libc.syscall({number('keyctl')}, 0, -3, 0))",
        f"{_SYSCALL}\nmust(libc.syscall({number('add_key')}, b'user', b'a', b'b', 1, -3))",
        f"{_SYSCALL}\nmust(libc.syscall({number('clone3')}, ctypes.create_string_buffer(88), 88))",
        f"{_SYSCALL}\nmust(libc.syscall({number('open_tree')}, -100, b'/', 1))",
        f"{_SYSCALL}\nb = ctypes.create_string_buffer(99)\n"
        f"must(libc.syscall({number('name_to_handle_at')}, -100, b'/', b, b, 0))",
    ],
}  # fmt: skip

# Attacks that end the program, or that never end; {after}: what it would do if it had gained anything
FATAL: dict[str, list[str]] = {
    "endless output": [
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(1, bytes(65536))",
        "print('x' * 10**7)",
        "import sys\nsys.stdout.write('escaped\\n' * 10**6)",
    ],
    "endless errors": ["import sys\nwhile True: sys.stderr.write('x' * 1000)"],
    "endless": [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\nthreading.Event().wait()",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import itertools\nsum(itertools.count())",
        "x = 10 ** 10 ** 9",
        "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
        "x = open('/dev/zero', 'rb').read()",
        "import os\nos.mkfifo('f')\nopen('f')",
    ],
    "ignoring signals": [
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
        "import signal, time\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "def again():\n    try:\n        while True: pass\n    except BaseException: again()\nagain()",
    ],
    "crash": [
        "import ctypes\nctypes.string_at(0)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f([n])\nf(0)",
        "import os\nos.abort()",
        "import os\nos.kill(os.getpid(), 9)",
        "import os\nos.kill(0, 9)",
        f"{_SYSCALL}\nlibc.syscall(0x40000000 | 39)\nlibc.exit(1)",
        "import faulthandler\nfaulthandler._sigsegv()",
        "raise BaseException('no')",
        "exec(chr(40) * 10**6)",
        "import sys\nsys.modules.clear()\nraise KeyboardInterrupt",
    ],
    "not a program": [
        "def f(:", "\0", "x = '\ud800'\nimport nothing_of_the_kind", "# coding: utf-7\n+AG8-", "\x00" * 1000, "1 +", "",
        "(" * 5000 + ")" * 5000, "x" + "." + "y" * 10**5,
    ],
}  # fmt: skip

# Attacks that are not refused, and change nothing: the answer after them counts, and the next case runs.
HARMLESS: dict[str, list[str]] = {
    "signals to the first process": [
        "import os, signal\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass",
        "import os\ntry: os.killpg(os.getpgid(0), 0)\nexcept OSError: pass",
        "import os\ntry: os.setsid()\nexcept OSError: pass",
    ],
    "traces of itself": [
        "import atexit, sys\natexit.register(lambda: sys.stdout.flush())",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        "open('/tmp/kept', 'w').write('kept')",
        "import os\nos.makedirs('a/b/c')\nos.chmod('a/b', 0)",
        "import os\nos.chmod('.', 0)",
        "import os, signal\nsignal.alarm(100)",
        "import sys\nsys.setswitchinterval(1e-6)\nsys.setrecursionlimit(10**6)",
        "import gc\ngc.disable()\ngc.freeze()",
        "import socket\na, b = socket.socketpair()\na.send(b'x')",
        "import asyncio\nasyncio.run(asyncio.sleep(0))",
    ],
}

_MARK = "escaped"


def _fill(text: str, targets: Targets) -> str:
    for name, value in vars(targets).items():
        text = text.replace(f"{{{name}!r}}", repr(value)).replace(f"{{{name}}}", str(value))
    return text


def _blocked(attempts: list[str], rng: random.Random, targets: Targets) -> Made:
    attempt = _fill(rng.choice(attempts), targets)
    if rng.random() < 0.5:
        return Made(f"{attempt}\nprint({_MARK!r})", [{"input": "", "output": _MARK}], passes=False)
    a, b = rng.randrange(1000), rng.randrange(1000)
    indented = "\n".join(f"    {line}" for line in attempt.split("\n"))
    source = f"result = 'refused'\ntry:\n{indented}\n    result = {_MARK!r}\nexcept BaseException:\n    pass\n"
    source += "x = None\nfs = ts = None\nprint(result, int(input()) + int(input()))"
    return Made(source, [{"input": f"{a}\n{b}\n", "output": f"refused {a + b}"}], passes=True)


def _fatal(attempts: list[str], rng: random.Random, targets: Targets) -> Made:
    attack = rng.choice(attempts)
    source = attack if attempts is FATAL["not a program"] else f"{attack}\nprint({_MARK!r})"
    return Made(source, [{"input": "", "output": _MARK}], passes=False).slow()


def _harmless(attempts: list[str], rng: random.Random, targets: Targets) -> Made:
    source = f"{rng.choice(attempts)}\ndef double(x): return 2 * x"
    values = [rng.randrange(10**6) for _ in range(2)]
    return Made(source, [{"call": f"double({x})", "expect": 2 * x} for x in values], passes=True)


FAMILIES = {
    **{name: partial(_blocked, attempts) for name, attempts in BLOCKED.items()},
    **{name: partial(_fatal, attempts) for name, attempts in FATAL.items()},
    **{name: partial(_harmless, attempts) for name, attempts in HARMLESS.items()},
}
