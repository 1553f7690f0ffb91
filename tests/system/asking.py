"""Asks ports of Ray, as a program on another machine does, and prints the answers as JSON: by port, by question.

Its one argument is a JSON object: `host`, `questions` (by port), `headers`. A question is `METHOD /path`, for a port
that speaks HTTP, or `package.Service/Method`, for one that speaks gRPC; each port is asked those of its protocol.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterable, Mapping

import grpc

PATIENCE = 30.0  # seconds: a server that listens may not serve yet


def answers(host: str, port: int, questions: Iterable[str], headers: Mapping[str, str]) -> dict[str, str | int]:
    """HTTP's status, or gRPC's code; a call's message is empty, and of a stream the first answer counts."""
    if _speaks_http(host, port):
        return {one: _fetched(host, port, one, headers) for one in questions if " /" in one}
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        return {one: _called(channel, one, headers) for one in questions if " /" not in one}


def _speaks_http(host: str, port: int) -> bool:
    try:
        return bool(_fetched(host, port, "GET /", {}))
    except (http.client.BadStatusLine, ConnectionResetError):  # gRPC answers in frames of HTTP/2
        return False


def _fetched(host: str, port: int, question: str, headers: Mapping[str, str]) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request(*question.split(), headers=dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


def _called(channel: grpc.Channel, question: str, headers: Mapping[str, str]) -> str:
    call = channel.stream_stream(f"/{question}")  # on the wire, a call of one message is a stream of one
    try:
        next(call(iter([b""]), metadata=tuple(headers.items()), timeout=PATIENCE, wait_for_ready=True), None)
    except grpc.RpcError as error:
        return error.code().name  # pyright: ignore[reportAttributeAccessIssue]
    return "OK"


def main() -> None:
    asked = json.loads(sys.argv[1])
    found = {
        port: answers(asked["host"], int(port), some, asked["headers"]) for port, some in asked["questions"].items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
