"""What a scorer remembers of responses that come in segments."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from actors.scoring.beginnings import Beginnings
from actors.wire.records import Request, Sample, pack_samples

IDS = list(range(10, 22))


def rows(uid: str = "a", attempt: int = 0, ids: Sequence[int] = IDS) -> list[Sample]:
    """A response of 12 tokens in four segments."""
    request = Request(uid, uid, attempt, 1, [1])
    parts = ((0, 4, ""), (4, 8, ""), (8, 10, ""), (10, 12, "stop"))
    return [request.answered(list(ids[:end]), [0.0] * end, f, [0] * end, start=start) for start, end, f in parts]


def so_far(found: Beginnings, *samples: Sample, channel: str = "c", earlier: Sequence[Sample] = ()) -> list[int] | None:
    payloads = [pack_samples([row])[0] for row in earlier]
    ids, unknown = found.complete(channel, samples, payloads)
    (uid,) = {sample.uid for sample in samples}
    assert unknown == (() if uid in ids else (uid,))
    return ids.get(uid)


def test_a_segment_is_joined_to_earlier_ones_and_the_last_clears_memory() -> None:
    found = Beginnings()
    assert [so_far(found, row) for row in rows()] == [IDS[:4], IDS[:8], IDS[:10], IDS]
    assert len(found) == 0


def test_segments_may_come_in_any_order_and_again() -> None:
    found, (first, second, third, last) = Beginnings(), rows()
    assert so_far(found, second) is None
    assert so_far(found, second, earlier=[first]) == IDS[:8]
    assert so_far(found, first) == IDS[:4] and so_far(found, third) == IDS[:10], "the longer one is kept"
    assert so_far(found, last) == IDS


def test_an_unknown_beginning_is_taken_from_earlier_payloads_once() -> None:
    found, request = Beginnings(), Request("a", "a", 0, 1, [1])
    segments = [request.answered(IDS[: t + 1], [0.0] * (t + 1), "", [0] * (t + 1), start=t) for t in range(12)]
    others = rows("b")[:2]
    assert so_far(found, segments[9], earlier=[*reversed(segments[:9]), *others]) == IDS[:10]
    assert so_far(found, segments[10]) == IDS[:11]


def test_a_gap_in_the_earlier_payloads_raises() -> None:
    second, other = rows()[1], rows(attempt=1)[0]
    for earlier in ([other], rows("b")[:1], [second]):
        with pytest.raises(RuntimeError, match="earlier segments of a"):
            so_far(Beginnings(), second, earlier=earlier)


@pytest.mark.parametrize("again", ["another attempt", "another channel"])
def test_an_abandoned_attempt_is_no_beginning_of_another(again: str) -> None:
    found, attempt, channel = Beginnings(), int(again == "another attempt"), again
    for row in rows(ids=range(50, 62))[:2]:
        so_far(found, row)
    second = rows(attempt=attempt)[1]
    assert so_far(found, second, channel=channel if not attempt else "c") is None


def test_beyond_the_bound_the_oldest_are_forgotten() -> None:
    found = Beginnings(tokens=10)
    for uid in "abc":
        so_far(found, rows(uid)[0])
    assert len(found) == 2
    assert so_far(found, rows("a")[1]) is None
    assert so_far(found, rows("b")[1]) == IDS[:8], "and then it has ten tokens no more beside c"
    assert len(found) == 1 and so_far(found, rows("c")[1]) is None
    first, second, *_ = rows("d", ids=range(100, 112))
    assert Beginnings(tokens=1).complete("c", [second], [pack_samples([first])[0]])[0] == {"d": list(range(100, 108))}
