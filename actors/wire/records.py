"""The wire: Arrow schemas of payloads, and the small headers that describe them.

The only place that knows column names. A payload (one record batch) travels by reference, and the actor that needs it
opens it; the orchestrator sees its header only. Columns are over response tokens; log-probs in nats, f32 or f16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

Span = tuple[int, int]

_spans = pa.list_(pa.list_(pa.int32(), 2))

SAMPLES = pa.schema(
    [
        ("uid", pa.string()),
        ("group", pa.string()),
        ("attempt", pa.int32()),
        ("seed", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("rollout_logprobs", pa.list_(pa.float32())),  # log mu of each response token, as sampled
        ("loss_spans", _spans),  # half-open token ranges of the response that carry loss
        ("finish", pa.string()),  # stop | length | data | cut | abort; empty while the response goes on
        ("versions", pa.list_(pa.int32())),  # policy version that sampled each response token
        ("support_ids", pa.list_(pa.int32())),  # [tokens * k] the student's own top k, row-major; empty if not asked
        ("start", pa.int32()),  # tokens before it were handed on in earlier segments; 0 of a whole response
    ]
)

_SCORES = [
    ("uid", pa.string()),
    ("scorer_version", pa.int32()),
    ("start", pa.int32()),  # response token of the first row of scores
    ("logprobs", pa.list_(pa.float32())),
]
_TOPK = [
    ("support_ids", pa.list_(pa.int32())),  # [tokens * k], row-major
    ("support_logprobs", pa.list_(pa.float16())),  # [tokens * k]
    ("tail_logprob", pa.list_(pa.float32())),  # [tokens]: log(1 - sum of the support), before rounding
]
_HIDDEN = [("hidden", pa.large_binary())]  # [tokens, width] last hidden states, row-major, in `hidden_dtype`


@dataclass(frozen=True, slots=True)
class Sample:
    """A row: one response, or a segment of it. Lists are over response tokens: over the new ones, from `start` on, in a
    segment that is not the last; over all in the last one and in a whole response. Spans are positions in the response.
    `seed` is hash(run seed, uid, attempt)."""

    uid: str
    group: str
    attempt: int
    seed: int
    prompt_ids: list[int]
    response_ids: list[int]
    rollout_logprobs: list[float]
    loss_spans: list[Span]
    finish: str
    versions: list[int]
    support_ids: list[int] = field(default_factory=list)
    start: int = 0

    @property
    def offset(self) -> int:
        """Tokens of the response before the first one in the lists."""
        return 0 if self.finish else self.start

    @property
    def new(self) -> slice:
        """The new tokens' place in the lists."""
        return slice(self.start - self.offset, None)


class SampleHeader(NamedTuple):
    """What the orchestrator knows of a row. Counts are of its new tokens [start, end), so that those of a response's
    segments add up; `versions` are (version, loss tokens sampled with it), ascending. `finite`: whether all of the
    writer's log-probs are; a dataset's are NaN."""

    uid: str
    group: str
    attempt: int
    prompt_tokens: int
    response_tokens: int
    loss_tokens: int
    finish: str
    versions: tuple[tuple[int, int], ...]
    start: int = 0
    finite: bool = True

    @property
    def end(self) -> int:
        """Tokens of the response so far."""
        return self.start + self.response_tokens

    @property
    def last(self) -> bool:
        """Whether the response has ended."""
        return self.finish != ""

    @property
    def version_min(self) -> int:
        """The oldest version of a loss token; 0 without any."""
        return self.versions[0][0] if self.versions else 0


class BlockHeader(NamedTuple):
    """Header of one block: its rows in payload order, and the payload's bytes. A response stands in a block once."""

    samples: tuple[SampleHeader, ...]
    payload_bytes: int


class ScoreHeader(NamedTuple):
    """Header of one block of scores. `rejected` maps a uid to the reason why it could not be scored; `unknown` are the
    uids of segments whose beginning the scorer lacks; `tokens` counts scored tokens. Sums over a row's tokens, in the
    order of `uids`, nats: `entropies`, None if the engine cannot give them; `log_ratios`, this model's log-prob less
    the sampler's, NaN if the sampler's is unknown. `suspicion`: why no working model gives these scores, or empty.
    `tails_floored` counts tokens whose tail is below the engine's resolution, `from_files` those whose scores were read
    from a folder."""

    uids: tuple[str, ...]
    rejected: dict[str, str]
    tokens: int
    scorer_version: int
    payload_bytes: int
    entropies: tuple[float, ...] | None = None
    log_ratios: tuple[float, ...] | None = None
    unknown: tuple[str, ...] = ()
    suspicion: str = ""
    tails_floored: int = 0
    from_files: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One response to write, at one attempt."""

    uid: str
    group: str
    attempt: int
    seed: int
    prompt_ids: list[int]
    response_ids: list[int] | None = None  # a dataset's own response, for source `dataset`
    sampled_prompt_ids: list[int] | None = None  # the prompt to sample with, if not the student's
    topk: int = 0  # how many of the sampler's most likely tokens to return for each position
    ends: tuple[int, ...] = ()  # ids to leave out of the top k
    segment_tokens: int = 0  # tokens of a segment; 0: hand the response on whole

    def answered(
        self,
        response_ids: list[int],
        rollout_logprobs: list[float],
        finish: str,
        versions: list[int],
        support_ids: Sequence[int] = (),
        start: int = 0,
    ) -> Sample:
        """The row of this response, or of its tokens so far, with loss on every token. In a segment that is not the
        last, `finish` is empty. `start`: tokens in earlier segments."""
        whole, held = [(0, len(response_ids))], slice(0 if finish else start, None)
        k = len(support_ids) // max(1, len(response_ids))
        return Sample(
            uid=self.uid,
            group=self.group,
            attempt=self.attempt,
            seed=self.seed,
            prompt_ids=self.prompt_ids,
            response_ids=response_ids[held],
            rollout_logprobs=rollout_logprobs[held],
            loss_spans=whole,
            finish=finish,
            versions=versions[held],
            support_ids=list(support_ids[k * held.start :]),
            start=start,
        )


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Scores wanted of a payload: of the new tokens of the samples in `prompts`, after the prompt ids given there by
    uid; without `prompts` of every sample, after its own prompt.

    `topk_of`: whose top k are the support; with `union` each id stands once, and unused places hold id -1. `channel`
    names the channel that the segments came in. `ends` are one outcome: a sampled one is scored as all of them
    together, and in a top k they have the last column, under the smallest of their ids.
    """

    support: str  # sampled | topk | full
    topk: int = 0
    topk_of: str = "teacher"  # teacher | student | union
    prompts: dict[str, list[int]] = field(default_factory=dict)
    reusable: bool = False  # the same responses will come again
    channel: str = ""
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of T tokens of a response, from `start` on. Arrays that the support does not need are None.

    logprobs [T] f32; support_ids, support_logprobs [T, k]; tail_logprob [T] f32; hidden [T, width] as raw bytes of
    `hidden_dtype`. `entropy_sum` and `log_ratio` (to the sampler) are sums over the T tokens, nats, and travel in the
    header. `version` is the scorer's at the time. `from_file`: read from a folder, not computed.
    """

    uid: str
    logprobs: np.ndarray
    support_ids: np.ndarray | None = None
    support_logprobs: np.ndarray | None = None
    tail_logprob: np.ndarray | None = None
    hidden: bytes | None = None
    entropy_sum: float | None = None
    version: int = 0
    start: int = 0
    log_ratio: float | None = None
    tails_floored: int = 0
    from_file: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self.logprobs, self.support_ids, self.support_logprobs, self.tail_logprob)
        return sum(a.nbytes for a in arrays if a is not None) + len(self.hidden or b"")


class BadWeights(Exception):
    """A version that must not be loaded: a name, a shape or a hash differs from the expected one."""


class BrokenWeights(Exception):
    """Some rank's weights are not finite; nothing of the learner may be published or saved."""


class SwapRefused(Exception):
    """A directory cannot be served; the scorer goes on with the old one."""


@dataclass(frozen=True, slots=True)
class BucketHeader:
    """The tensors of one bucket, in order; `fingerprint` is the hash of the bucket's bytes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    nbytes: int
    fingerprint: str


def pack_samples(samples: Sequence[Sample]) -> tuple[pa.RecordBatch, BlockHeader]:
    """Rows -> payload and header, in the same order."""
    columns = [[getattr(s, name) for s in samples] for name in SAMPLES.names]
    payload = pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SAMPLES, strict=True)], schema=SAMPLES)
    return payload, BlockHeader(tuple(header_of(s) for s in samples), payload.nbytes)


def unpack_samples(payload: pa.RecordBatch) -> list[Sample]:
    """Payload -> its rows, in order."""
    rows = payload.select(SAMPLES.names).to_pylist()
    return [Sample(**row | {"loss_spans": [(start, end) for start, end in row["loss_spans"]]}) for row in rows]


def header_of(sample: Sample) -> SampleHeader:
    first = sample.offset
    new = [slice(max(start, sample.start) - first, max(end - first, 0)) for start, end in sample.loss_spans]
    versions = Counter(version for span in new for version in sample.versions[span])
    return SampleHeader(
        uid=sample.uid,
        group=sample.group,
        attempt=sample.attempt,
        prompt_tokens=len(sample.prompt_ids),
        response_tokens=len(sample.response_ids[sample.new]),
        loss_tokens=versions.total(),
        finish=sample.finish,
        versions=tuple(sorted(versions.items())),
        start=sample.start,
        finite=bool(np.isfinite(sample.rollout_logprobs[sample.new]).all()),
    )


def log_ratio_of(logprobs: np.ndarray, sample: Sample) -> float:
    """Sum over a sample's T new tokens of a model's log-probs [T] less the sampler's, nats. NaN if the sampler's are
    unknown."""
    return float((logprobs - np.asarray(sample.rollout_logprobs[sample.new])).sum())


def by_response(payloads: Iterable[pa.RecordBatch]) -> dict[tuple[str, int], list[Sample]]:
    """Rows of several payloads by uid and attempt."""
    found: dict[tuple[str, int], list[Sample]] = {}
    for payload in payloads:
        for sample in unpack_samples(payload):
            found.setdefault((sample.uid, sample.attempt), []).append(sample)
    return found


def pack_scores(
    scores: Sequence[Score], rejected: dict[str, str], hidden_dtype: str | None = None, unknown: Sequence[str] = ()
) -> tuple[pa.RecordBatch, ScoreHeader]:
    """Scores -> payload and header. The first score's support determines the columns."""
    fields: list[Any] = list(_SCORES)
    columns: list[Any] = [[s.uid for s in scores], [s.version for s in scores], [s.start for s in scores]]
    columns.append(_ragged(s.logprobs for s in scores))
    first = scores[0] if scores else None
    if first is not None and first.support_ids is not None:
        fields += _TOPK
        columns += [_ragged(getattr(s, name) for s in scores) for name, _ in _TOPK]
    if first is not None and first.hidden is not None:
        fields += _HIDDEN
        columns.append([s.hidden for s in scores])
    schema = pa.schema(fields, metadata={"hidden_dtype": hidden_dtype} if hidden_dtype else None)
    payload = pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    tokens = sum(len(s.logprobs) for s in scores)
    newest = max((s.version for s in scores), default=0)
    entropies, log_ratios = (_known(getattr(s, name) for s in scores) for name in ("entropy_sum", "log_ratio"))
    uids = tuple(s.uid for s in scores)
    header = ScoreHeader(
        uids,
        rejected,
        tokens,
        newest,
        payload.nbytes,
        entropies,
        log_ratios,
        tuple(unknown),
        tails_floored=sum(s.tails_floored for s in scores),
        from_files=sum(len(s.logprobs) for s in scores if s.from_file),
    )
    return payload, header


def _known(values: Iterable[float | None]) -> tuple[float, ...] | None:
    """The values, or None if one is missing."""
    found = tuple(values)
    return None if None in found else found  # type: ignore[return-value]


class ScoreTable:
    """Reads a payload of scores: arrays of a row by uid, without copying columns."""

    def __init__(self, payload: pa.RecordBatch) -> None:
        self._payload = payload
        self._rows = {uid: row for row, uid in enumerate(payload.column("uid").to_pylist())}
        metadata = payload.schema.metadata or {}
        self.hidden_dtype = metadata[b"hidden_dtype"].decode() if b"hidden_dtype" in metadata else None

    def __contains__(self, uid: str) -> bool:
        return uid in self._rows

    def has(self, column: str) -> bool:
        return column in self._payload.schema.names

    def values(self, uid: str, column: str) -> np.ndarray:
        """One row of a list column, flat: [tokens], or [tokens * k] of a support column."""
        return self._payload.column(column)[self._rows[uid]].values.to_numpy(zero_copy_only=False)

    def start(self, uid: str) -> int:
        """The position in the response of the first scored token."""
        return self._payload.column("start")[self._rows[uid]].as_py()

    def version(self, uid: str) -> int:
        """The scorer's version that gave a row's scores."""
        return self._payload.column("scorer_version")[self._rows[uid]].as_py()

    def hidden(self, uid: str) -> bytes:
        return self._payload.column("hidden")[self._rows[uid]].as_py()


def _ragged(rows: Iterable[np.ndarray | None]) -> list[np.ndarray]:
    return [np.asarray(row).reshape(-1) for row in rows]
