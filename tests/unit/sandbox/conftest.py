from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from rewards.sandbox.isolation import NoIsolation, isolation, leak
from rewards.sandbox.mechanisms import MECHANISMS, Mechanism


def _machine_allows() -> bool:
    """Whether another tool can make the namespaces here: then the sandbox must hold, and no test is skipped."""
    if shutil.which("unshare") is None:
        return False
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    tried = ["unshare", *user, "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "true"]
    return subprocess.run(tried, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def mechanism() -> Mechanism:
    """The one that rewards use here."""
    try:
        return isolation()
    except NoIsolation as reason:
        assert not _machine_allows(), str(reason)
        pytest.skip(str(reason))


@pytest.fixture(scope="session", params=MECHANISMS, ids=lambda one: one.name)
def each_mechanism(request: pytest.FixtureRequest) -> Mechanism:
    """Those that can be tried here, first choice or not; as root, the limit on processes holds in the first only."""
    wanted = {"root": os.geteuid() == 0, "bubblewrap": shutil.which("bwrap") is not None}
    if reason := leak(request.param):
        assert not (wanted.get(request.param.name, True) and _machine_allows()), reason
        pytest.skip(reason)
    return request.param
