"""The tables of ports in docs/security.md take what is in them, and nothing else."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.listening import Listener, table, unlisted, unseen

GCS, DASHBOARD = "/x/ray/core/src/ray/gcs/gcs_server --log_dir=/y", "python /x/ray/dashboard/dashboard.py --host=z"
NODE = "10.0.0.1"


@pytest.mark.parametrize(
    ("heading", "address", "port", "title", "listed"),
    [
        ("On one machine", "127.0.0.1", 40000, GCS, True),
        ("On one machine", "0.0.0.0", 40000, GCS, False),
        ("On one machine", "127.0.0.1", 8300, DASHBOARD, True),
        ("On one machine", "127.0.0.1", 8316, DASHBOARD, False),
        ("On one machine", "127.0.0.1", 8000, "vllm serve", False),
        ("On one machine", NODE, 40000, "ray::Learner.step", False),
        ("On a cluster", "0.0.0.0", 6379, GCS, True),
        ("On a cluster", "0.0.0.0", 6380, GCS, False),
        ("On a cluster", "127.0.0.1", 8265, DASHBOARD, True),
        ("On a cluster", "0.0.0.0", 8265, DASHBOARD, False),
        ("On a cluster", NODE, 10001, "python -m ray.util.client.server", True),
        ("On a cluster", "10.0.0.2", 10001, "python -m ray.util.client.server", False),
    ],
)
def test_a_listener_is_in_a_table_by_process_port_and_interface(
    heading: str, address: str, port: int, title: str, listed: bool
) -> None:
    one = Listener(ip_address(address), port, title)
    assert bool(unlisted([one], table(heading), NODE)) != listed
    assert (len(unseen([one], table(heading), NODE)) < len(table(heading))) == listed
