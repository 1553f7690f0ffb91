from __future__ import annotations

import pytest

from rewards.sandbox.isolation import NoIsolation, isolation, leak
from rewards.sandbox.mechanisms import MECHANISMS, Mechanism


@pytest.fixture(scope="session")
def mechanism() -> Mechanism:
    """The one that rewards use here."""
    try:
        return isolation()
    except NoIsolation as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session", params=MECHANISMS, ids=lambda one: one.name)
def each_mechanism(request: pytest.FixtureRequest) -> Mechanism:
    """Those that hold here, first choice or not; as root, the limit on processes holds in the first only."""
    if reason := leak(request.param):
        pytest.skip(reason)
    return request.param
