"""A scorer that asks a vLLM server elsewhere: what it makes of answers, of refusals, and of a server that is away."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.scoring import server_client
from actors.scoring.engine import Item
from actors.scoring.scorer import Scorer
from actors.scoring.server_client import ServerAway, ServerClient, ServerRefused
from actors.scoring.server_engine import ServerEngine
from actors.wire.records import Request, ScoreRequest, ScoreTable, pack_samples
from configs.load import RecipeError
from configs.roles.scorer import Scorer as ScorerConfig
from configs.roles.scorer import Server
from configs.rules import warnings
from orchestrator.pools.sick import fault_of
from orchestrator.preflight.inputs.servers import check_servers
from tests.unit.scoring.scripted_server import Scripted, says
from tests.unit.simulation import recipe

ITEM = Item("a", [7, 8, 9], [11, 12, 13], 1, True, [])  # the last two of its tokens are new
KEY = "sk-ugly+/=key"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.005)
    monkeypatch.setattr("actors.scoring.server_engine.PATIENCE", 0.2)


def with_server(server: Scripted, story: Callable[[ScorerConfig], Awaitable[Any]], **keys: Any) -> Any:
    async def told() -> Any:
        async with server.serving():
            serves = Server(address=server.address, **keys)
            return await story(ScorerConfig(engine="server", server=serves, max_context_tokens=32))

    return asyncio.run(told())


def scored(server: Scripted, request: ScoreRequest, item: Item = ITEM, **keys: Any) -> Any:
    async def story(config: ScorerConfig) -> Any:
        engine = await ServerEngine.start(config)
        try:
            return await engine.score([item, item], request)
        finally:
            engine.stop()

    return with_server(server, story, **keys)[0]


def test_new_tokens_of_a_response_have_the_servers_logprobs() -> None:
    server = Scripted()
    score = scored(server, ScoreRequest("sampled"))
    assert score.logprobs == pytest.approx([-1.14, -1.15]) and score.logprobs.dtype == np.float32
    body = {"model": "big", "prompt": [7, 8, 9, 11, 12, 13], "max_tokens": 1, "prompt_logprobs": 0}
    assert server.asked == [body, body] and server.keys == [None] * 3


def test_the_likeliest_tokens_come_by_rank_with_the_mass_outside_of_them() -> None:
    score = scored(Scripted(), ScoreRequest("topk", topk=3))
    assert score.support_ids.tolist() == [[900, 12, 902], [900, 13, 902]]
    assert score.support_logprobs[0].tolist() == pytest.approx([-1.5, -1.14, -3.5], abs=2e-3)  # float16
    inside = [sum(map(math.exp, (-1.5, own, -3.5))) for own in (-1.14, -1.15)]
    assert score.tail_logprob.tolist() == pytest.approx([math.log(1 - mass) for mass in inside])


def test_a_logprob_that_json_cannot_hold_is_minus_infinity_and_the_sample_is_rejected(tmp_path: Path) -> None:
    server = Scripted(lambda place, token, k: {str(token): {"logprob": -9999.0 if token == 12 else -0.3, "rank": 1}})
    requests = [Request(uid, uid, 0, 1, [1, 2]) for uid in ("good", "bad")]
    samples = [r.answered([5, t], [-0.1] * 2, "stop", [0, 0]) for r, t in zip(requests, (11, 12), strict=True)]

    async def story(config: ScorerConfig) -> Any:
        scorer = Scorer(config, "/none", 1000)
        await scorer.start()
        texts = await scorer.canary([[1, 2, 3], [4, 5]], repeats=True)
        answer = await scorer.score(pack_samples(samples)[0], ScoreRequest("sampled"))
        await scorer.stop()
        return texts, answer

    (texts, (payload, header)) = with_server(server, story)
    assert len(texts) == 3 and all(text == pytest.approx([-0.3] * 3) for text in texts)
    assert header.rejected == {"bad": "the scorer's log-probs are not finite"}
    assert "good" in ScoreTable(payload) and "bad" not in ScoreTable(payload)


def test_a_server_that_is_away_for_a_moment_is_asked_again() -> None:
    server = Scripted()
    server.first = [says(503, "loading"), says(429, "busy"), says(500, "oh")]
    assert scored(server, ScoreRequest("sampled")).logprobs == pytest.approx([-1.14, -1.15])


def test_a_server_that_stays_away_makes_its_member_sick() -> None:
    server = Scripted()
    server.first = [says(200, '{"data": [{"id": "big"}]}')] + [says(502, "bad\n gateway")] * 200
    with pytest.raises(ServerAway, match=r"answers 502 bad gateway; it was asked for 0.2 s") as raised:
        scored(server, ScoreRequest("sampled"))
    assert fault_of(raised.value) == "device"

    async def nobody() -> None:
        async with ServerClient(Server(address="http://127.0.0.1:9"), 0.02) as client:
            await client.find(8)

    with pytest.raises(ServerAway, match="does not answer"):
        asyncio.run(nobody())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(400, '{"error": {"message": "prompt_logprobs 3 exceeds\\nmax_logprobs"}}'), "answers 400 .*max_logprobs"),
        (says(401, "Unauthorized"), "answers 401 Unauthorized"),
        (says(302, "", Location="http://127.0.0.1:9/elsewhere"), "answers 302"),
        (says(200, "<html>"), "no JSON"),
        (says(200, "[1]"), "no JSON object"),
        (says(200, '{"choices": []}'), "no log-probs of a prompt"),
        (says(200, '{"choices": [{"prompt_logprobs": [null]}]}'), "no log-probs of a prompt;"),
        (says(200, '{"choices": [{"prompt_logprobs": [null, {}, {}, {}, {}, {}]}]}'), "are not those of 3 ranks"),
    ],
)
def test_a_server_that_refuses_or_answers_otherwise_is_no_sick_member(answer: Any, said: str) -> None:
    server = Scripted()
    server.first = [says(200, '{"data": [{"id": "big"}]}'), answer, answer]
    with pytest.raises(ServerRefused, match=said) as raised:
        scored(server, ScoreRequest("topk", topk=3))
    assert fault_of(raised.value) is None and "\n" not in str(raised.value)


def test_probabilities_that_sum_to_more_than_one_are_refused() -> None:
    both = {"1": {"logprob": -0.1, "rank": 1}, "2": {"logprob": -0.2, "rank": 2}}
    server = Scripted(lambda place, token, k: {str(token): {"logprob": -3.0, "rank": 9}} | both)
    with pytest.raises(ServerRefused, match=r"sum to 1\.7"):
        scored(server, ScoreRequest("topk", topk=2))


def test_the_key_is_sent_and_said_nowhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    server = Scripted()
    scored(server, ScoreRequest("sampled"), token_file=str(tmp_path / "key"))
    assert server.keys == [f"Bearer {KEY}"] * 3
    server.first = [says(403, "no")]
    with pytest.raises(ServerRefused) as raised:
        scored(server, ScoreRequest("sampled"), token_file=str(tmp_path / "key"))
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("", "holds no key"), ("a b", "holds no key")])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(ServerRefused, match=said):
        scored(Scripted(), ScoreRequest("sampled"), token_file=str(tmp_path / "key"))


@pytest.mark.parametrize(
    ("models", "named", "said"),
    [
        ([], None, "it serves: none"),
        ([{"id": "a"}, {"id": "b"}], None, "several models are served; name one as model; it serves: a, b"),
        ([{"id": "a"}], "b", "model: b is not served; it serves: a"),
        ([{"id": "a", "max_model_len": 32}], "a", r"a with 32 tokens, and max_context_tokens: 32 and one more"),
    ],
)
def test_check_refuses_a_server_that_does_not_fit(
    tmp_path: Path, models: list[dict[str, Any]], named: str | None, said: str
) -> None:
    server = Scripted()
    server.models = models

    async def story(config: ScorerConfig) -> None:
        assert config.server is not None
        keys = {"address": config.server.address} | ({"model": named} if named else {})
        scorer = {"teacher": {"engine": "server", "server": keys, "max_context_tokens": 32}}
        run = recipe(tmp_path, scorer=scorer, objective={"support": "sampled"})
        with pytest.raises(RecipeError, match=rf"^scorer\.teacher\.server: {server.address}: .*{said}"):
            await asyncio.to_thread(check_servers, run)

    with_server(server, story)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"engine": "server"}, r"scorer\.teacher\.server: goes with engine: server, found engine: server; set server"),
        ({"server": {"address": "http://h:1"}}, "found engine: torch; set engine: server"),
        ({"engine": "server", "server": {"address": "h:1"}}, r"scorer\.teacher\.server\.address"),
        ({"engine": "server", "server": {"address": "http://me:word@h:1"}}, r"scorer\.teacher\.server\.address"),
        ({"engine": "server", "server": {"address": "http://h:1", "token_file": "k"}}, "token_file"),
        ({"engine": "server", "server": {"address": "http://h:1"}, "resources": {"gpus": 1}}, r"resources\.gpus"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, scorer={"teacher": keys}, objective={"support": "sampled"})


def test_what_a_server_cannot_give_is_refused_and_a_key_in_clear_is_warned_of(tmp_path: Path) -> None:
    scorer = {"teacher": {"engine": "server", "server": {"address": "http://far:1", "token_file": "/k"}}}
    with pytest.raises(RecipeError, match="'server' has no hidden states"):
        recipe(tmp_path, scorer=scorer, objective={"support": "full"})
    with pytest.raises(RecipeError, match="its server keeps its weights"):
        swapped = {"teacher": {"path": "/t", "swaps": {2: "/u"}}}
        recipe(tmp_path, scorer=scorer, objective={"support": "sampled"}, models=swapped)
    found = warnings(recipe(tmp_path, scorer=scorer, objective={"support": "sampled"}))
    assert any("its key goes to far in clear" in warning for warning in found)
