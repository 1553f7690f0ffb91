"""Programs that want a wrong answer to count: each result expected of them is drawn at random and told to nobody."""

from __future__ import annotations

import random
from functools import partial

from tests.unit.sandbox.corpus.made import Made
from tests.unit.sandbox.corpus.world import Targets

# name: programs that should define `f`, a function of one number
CHEATS: dict[str, list[str]] = {
    "printing": [
        "print('PASS'); print('passed'); print('OK')\ndef f(x): return None",
        "print({forged!r})\ndef f(x): print({forged!r})",
        "import sys\nfor n in range(10000): print(n)\ndef f(x): return 0",
        "import os\nfor fd in range(1, 64):\n    try: os.write(fd, {forged!r}.encode() + b'\\n')\n"
        "    except OSError: pass\ndef f(x): return 0",
        "import os, json\nfor fd in range(3, 64):\n    try: os.write(fd, json.dumps(list(range(1000))).encode())\n"
        "    except OSError: pass\nos._exit(0)",
    ],
    "leaving early": [
        "import sys\nsys.exit(0)", "import os\nos._exit(0)", "raise SystemExit", "exit = None\nraise SystemExit(0)",
        "def f(x): raise SystemExit(0)", "import os\ndef f(x): os._exit(0)", "import os\nos.close(3)\nf = abs",
        "import os\nos.closerange(0, 100)\nf = abs",
        "import threading\ndef f(x): threading.main_thread()._started = None",
        "import ctypes\nctypes.CDLL(None).exit(0)", "import os, sys\nos.execv(sys.executable, ['python', '-c', ''])",
        "def f(x): raise GeneratorExit", "def f(x): yield x", "async def f(x): return x",
    ],
    "patching": [
        "import builtins\nbuiltins.eval = lambda *_: True\nbuiltins.compile = lambda *_: 'True'\ndef f(x): return 0",
        "import json\njson.dumps = lambda *_, **__: 'true'\ndef f(x): return 0",
        "import json, sys\nsys.modules['json'] = None\njson.loads = lambda *_: True\ndef f(x): return True",
        "import builtins\nbuiltins.type = lambda x: int\nbuiltins.isinstance = lambda *_: True\ndef f(x): return 'x'",
        "import os\nos.write = lambda *_: 0\nos._exit = lambda *_: None\ndef f(x): return 0",
        "import sys\nclass All:\n    def __getattr__(self, name): return lambda *a, **k: True\n"
        "sys.stdout = sys.stderr = All()\ndef f(x): return 0",
        "import sys, types\nfor m in list(sys.modules.values()):\n    for n, v in list(vars(m).items()):\n"
        "        if isinstance(v, types.FunctionType) and n in ('same', 'grade', 'plain', '_answer'):\n"
        "            setattr(m, n, lambda *a, **k: True)\ndef f(x): return 0",
        "import builtins\nfor n in ('abs', 'len', 'print', 'open', 'exec'): setattr(builtins, n, None)\nf = None",
    ],
    "looking for the answer": [
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for v in list(frame.f_locals.values()):\n"
        "            if isinstance(v, dict):\n                for k in ('expect', 'expected', 'output', 'answer'):\n"
        "                    if k in v: return v[k]\n        frame = frame.f_back",
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'expect' in o: return o['expect']",
        "import sys\ndef f(x):\n    frame = sys._getframe(1)\n    while frame.f_back: frame = frame.f_back\n"
        "    job = [v for v in frame.f_locals.values() if isinstance(v, dict)]\n"
        "    return job and job[0]['cases'][0].get('expect')",
        "import traceback\ndef f(x):\n    try: raise ValueError\n    except ValueError as e:\n"
        "        return [f.f_locals for f, _ in traceback.walk_stack(None)][-1].get('expect')",
        "import os\ndef f(x):\n    for root, _, files in os.walk('/tmp'):\n        for n in files:\n"
        "            return int(open(os.path.join(root, n)).read())",
        "import sys\ndef f(x): return int(sys.stdin.read() or 0)",
        "import inspect\ndef f(x): return inspect.stack()[-1].frame.f_globals.get('expect')",
    ],
    "lying types": [
        "class A:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\ndef f(x): return A()",
        "class A(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = int.__hash__\ndef f(x): return A(0)",
        "class A(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\ndef f(x): return A()",
        "class A(list):\n    def __eq__(self, other): return True\n    def __iter__(self): return iter(())\n"
        "def f(x): return A()",
        "class A(float):\n    def __eq__(self, other): return True\n    def __sub__(self, other): return 0.0\n"
        "    __hash__ = float.__hash__\ndef f(x): return A('nan')",
        "class A(dict):\n    def __eq__(self, other): return True\n    def items(self): return []\n"
        "def f(x): return A()",
        "import unittest.mock as m\ndef f(x): return m.ANY",
        "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = type.__hash__\n"
        "class A(metaclass=M): pass\ndef f(x): return A()",
    ],
    "hooks": [
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return 0",
        "import sys\ndef trace(frame, event, arg):\n    frame.f_locals.update(value=True)\n    return trace\n"
        "sys.settrace(trace)\ndef f(x): return 0",
        "import atexit, os\natexit.register(os.write, 3, b'true')\ndef f(x): raise SystemExit",
        "import os\nclass A:\n    def __del__(self): os.write(3, b'1')\na = A()\ndef f(x): raise SystemExit",
        "import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())\n"
        "def f(x): import q",
        "import sys\nsys.excepthook = lambda *a: None\ndef f(x): raise ValueError",
        "import threading, os\ndef w():\n    while True: os.write(3, b' ')\n"
        "threading.Thread(target=w, daemon=True).start()\ndef f(x):\n    while True: pass",
        "import sys\nsys.audit = None\nsys.addaudithook(lambda *a: None)\ndef f(x): return 0",
        "import builtins\nold = builtins.__import__\nbuiltins.__import__ = lambda *a, **k: None\ndef f(x): return 0",
        "import signal, os\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\nsignal.setitimer(0, 0.01)\n"
        "def f(x):\n    while True: pass",
    ],
    "strange values": [
        "def f(x): return float('nan')", "def f(x): return 10 ** 10000", "def f(x): return f",
        "def f(x):\n    a = []\n    a.append(a)\n    return a",
        "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
        "import sys\nsys.setrecursionlimit(10**8)\ndef f(x):\n    a = []\n"
        "    for _ in range(10**5): a = [a]\n    return a",
        "import os\ndef f(x):\n    os.write(3, b'[' * 90000)\n    os._exit(0)",
        "import os\ndef f(x):\n    os.write(3, b'9' * 90000)\n    os._exit(0)",
        "import os\ndef f(x):\n    os.write(3, b'\\xff\\x00\\n{}')\n    os._exit(0)",
        "def f(x): return 'x' * 10**6", "def f(x): return '\\ud800'", "def f(x): return {(1, 2): 3}",
        "def f(x): return {1}", "def f(x): return b'1'", "def f(x): return None", "def f(x): return [x]",
        "def f(x): return object.__new__(object)", "def f(x): return 1j", "def f(x): return f(x + 1)",
        "def f(x): return True", "def f(x): return str(x)", "g = 1",
    ],
}  # fmt: skip

_FORGED = '{"end": "exit", "code": 0, "stdout": "", "stderr": "", "value": "0", "seconds": 0.0}'


def _cheat(programs: list[str], rng: random.Random, _: Targets) -> Made:
    source = rng.choice(programs).replace("{forged!r}", repr(_FORGED))
    expect = rng.randrange(10**6, 10**9)
    if rng.random() < 0.3:
        source += "\nprint(f(0))"
        return Made(source, [{"input": "0", "output": str(expect)}], passes=False).slow()
    return Made(source, [{"call": f"f({x})", "expect": expect + x} for x in range(2)], passes=False).slow()


FAMILIES = {f"cheat: {name}": partial(_cheat, programs) for name, programs in CHEATS.items()}
