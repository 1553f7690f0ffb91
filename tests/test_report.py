"""The report page: what it says, on whole and on partial data, and what a sample cannot make it do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.surface import watch
from orchestrator.surface.report.page import COLOURS, SKIPPED_ROWS, Answer, held_out_answers, write_report
from orchestrator.surface.report.recorded import Token, token_spans
from tests import synthetic


def page_of(run: Path) -> str:
    """The written page without the plotly library."""
    return re.sub(r"<script>/\*\*.*?</script>", "", write_report(run, synthetic.decode).read_text(), flags=re.DOTALL)


def spans_of(answer: str, ratios: list[float] | None) -> list[Token]:
    """Display tokens of one sample; ratios in nats, cut or filled with zeros to the length of the response."""
    row = synthetic.sample("s", "q", answer)
    student = [-2.0] * len(row.response_ids)
    filled = [*(ratios or []), *[0.0] * len(student)][: len(student)]
    columns = {
        "response_ids": row.response_ids,
        "loss_spans": row.loss_spans,
        "student_logprobs": student,
        "teacher_logprobs": None if ratios is None else [q + r for q, r in zip(student, filled, strict=True)],
    }
    return token_spans(columns, synthetic.decode, lambda token: synthetic.decode([token]))


def test_whole_run(tmp_path: Path) -> None:
    page = page_of(synthetic.write_run(tmp_path / "run"))
    for text in ("pirate-opd", "done", "15 steps in 142 s (start-up: 38 s)", "0.36 → 0.09", "-75 %", "full support"):
        assert text in page
    for text in ("Step 1<", "Step 8<", "Step 15<", "Arr, the sea, matey!", "What is thing 0?", "mean l"):
        assert text in page
    assert page.count("Plotly.newPlot(") == 10  # eleven panels, less the reward nobody measured
    assert (tmp_path / "run/report.html").stat().st_size < 8e6
    assert list((tmp_path / "run").glob(".report*")) == []


def test_held_out_values_on_the_way_are_diamonds_at_their_steps(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=9)
    assert '"x":[0,9],"y":[0.36,0.09]' in page_of(run)
    summary = json.loads((run / "summary.json").read_text())
    summary["evaluation"]["steps"] = [{"step": 4, "reverse_kl": 0.25}, {"step": 8, "reverse_kl": 0.11}]
    (run / "summary.json").write_text(json.dumps(summary))
    assert '"x":[0,4,8,9],"y":[0.36,0.25,0.11,0.09]' in page_of(run)


def test_a_swapped_teacher_is_named(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=1)
    assert "refer to two models" not in page_of(run)
    summary = json.loads((run / "summary.json").read_text())
    swaps = [{"model": "teacher", "step": 9, "path": "/models/<teacher-2>"}]
    (run / "summary.json").write_text(json.dumps(summary | {"swaps": swaps}))
    assert "From step 9 on models.teacher was /models/&lt;teacher-2&gt;:" in page_of(run)


def test_a_biased_run_is_marked(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=1)
    assert "biased on request" not in page_of(run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"biased": ["k1_in_loss", "tempered_sampling"]}))
    marks = re.findall(r'<span class="pill bad">(biased on request: \w+)</span>', page_of(run))
    assert marks == ["biased on request: k1_in_loss", "biased on request: tempered_sampling"]


def test_skipped_samples_are_named_with_their_reason_and_prompt_and_restarts_with_their_role(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=1)
    assert "What was skipped and restarted" not in page_of(run)
    died, empty = "quarantined: 3 members of rollout died of it", "empty response"
    summary = json.loads((run / "summary.json").read_text()) | {
        "skipped": {"00000007.001": empty, "00000002.001": died, "00000002.000": died, "00000002.002": empty},
        "skipped_prompts": {"00000002": f"Say {synthetic.HOSTILE}"},
        "restarts": {"rollout": 3, "scorer.teacher": 1},
        "learner_rebuilds": 2,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    page = page_of(run)
    rows = re.findall(
        r"<tr><td>(0000.*?)</td>.*?reason\"><div>(.*?)</div>.*?prompt\"><div>(.*?)</div>", page, re.DOTALL
    )
    said = "Say &lt;script&gt;"
    assert [(uids, reason, text[: len(said)]) for uids, reason, text in rows] == [
        ("00000002.000, 00000002.001", died, said),
        ("00000002.002", empty, said),
        ("00000007.001", empty, "–"),
    ]
    assert "Members replaced: rollout 3, scorer.teacher 1." in page
    assert "The learner was rebuilt 2 times" in page


def test_of_many_skipped_prompts_the_first_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    skipped = {f"{group:08d}.000": "empty response" for group in range(SKIPPED_ROWS + 3)}
    (tmp_path / "summary.json").write_text(json.dumps({"skipped": skipped}))
    page = page_of(tmp_path)
    shown = page.split("<h2>What was skipped and restarted</h2>")[1].split("</section>")[0]
    assert shown.count("empty response") == SKIPPED_ROWS and "… and 3 more in summary.json" in shown


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    page = page_of(synthetic.write_run(tmp_path / "run", steps=2))
    assert "default-src 'none'" in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//|@import|url\(""", markup)


def test_a_hostile_sample_stays_text(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=1)
    hostile = synthetic.sample("held-000", synthetic.HOSTILE, synthetic.HOSTILE)
    synthetic.write_samples(run / "samples/eval_after.rank0.arrow", [hostile], [None])
    (run / "recipe.yaml").write_text(f'run: {{name: "{synthetic.HOSTILE}"}}\n')
    page = page_of(run)
    assert "<script>window" not in page and "<img" not in page
    assert "&lt;script&gt;window.hacked" in page


def test_curves_have_the_colours_of_the_live_page() -> None:
    """Those are held to a contrast in a browser (tests/system/test_watch_readable.py)."""
    script = (Path(watch.__file__).parent / "static" / "charts.js").read_text()
    live = re.findall(r"#[0-9a-f]{6}", script.partition("const COLOURS = [")[2].partition("]")[0])
    assert [*COLOURS] == live[: len(COLOURS)] and len(COLOURS) == 6


def test_colour_follows_the_sign_of_the_log_ratio() -> None:
    less, more, clipped, neutral, end = spans_of(" the ship sail map", [-1.5, 0.6, 9.0])
    assert (less.text, less.sign, less.strength) == (" the", "neg", 0.5)
    assert (more.sign, round(more.strength, 6)) == ("pos", 0.2)
    assert (clipped.sign, clipped.strength) == ("pos", 1.0)
    assert (neutral.sign, neutral.special) == ("", False)
    assert end.special and end.text == "<|im_end|>"


def test_the_page_carries_sign_and_numbers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    synthetic.write_samples(run / "samples/step_000003.rank0.arrow", [synthetic.sample("s", "q", " the")], [[-1.5, 1]])
    page = page_of(run)
    assert re.search(r'class="neg" style="--a:0.50" data-l="-1.50" data-q="-2.00" data-p="-3.50"> the<', page)
    assert re.search(r'class="pos special" style="--a:0.33"[^>]*>&lt;\|im_end\|&gt;<', page)


def test_parts_of_a_character_are_one_span_with_the_mean_ratio() -> None:
    first, flag, letter, _ = spans_of("a🏴b", [0.0, 1.0, 2.0, 3.0, 4.0, -1.0])
    assert (first.text, flag.text, letter.text) == ("a", "🏴", "b")
    assert (flag.ratio, letter.ratio) == (2.5, -1.0)


def test_a_character_that_never_ends_stays_on_its_own() -> None:
    ids = [*synthetic.encode("é")[:1], *synthetic.encode("b")]
    columns = {"response_ids": ids, "loss_spans": [(1, 2)], "student_logprobs": [0, 0], "teacher_logprobs": [-1, 1]}
    tokens = token_spans(columns, synthetic.decode, lambda token: synthetic.decode([token]))
    assert [(t.text, t.ratio, t.in_loss) for t in tokens] == [("\ufffd", -1, False), ("b", 1, True)]


def test_no_teacher_has_no_colour(tmp_path: Path) -> None:
    assert {token.sign for token in spans_of(" the ship", None)} == {""}
    run = tmp_path / "run"
    synthetic.write_samples(run / "samples/step_000001.rank0.arrow", [synthetic.sample("s", "q", " the")], [None])
    assert "not scored by a teacher" in page_of(run)


def test_an_empty_directory(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    for text in ("not finished", "No step was finished", "No held-out answers", "No samples were recorded"):
        assert text in page


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl", "summary.json", "samples"])
def test_one_thing_missing(tmp_path: Path, name: str) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=1)
    (run / name).rename(tmp_path / "away")
    page_of(run)


def test_null_metrics_and_no_evaluation(tmp_path: Path) -> None:
    nulls = dict.fromkeys(synthetic.metrics_of(1, 2))
    lines = [json.dumps(nulls | {"step": step, "loss": loss}) for step, loss in ((1, 2.0), (2, None))]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "los']))
    (tmp_path / "summary.json").write_text('{"exit": 3, "steps": 2, "seconds": 7.0, "evaluation": {"before": null}}')
    page = page_of(tmp_path)
    assert "stopped, resumable" in page and "2 steps in 7 s" in page
    assert page.count("Plotly.newPlot(") == 1


def test_without_evaluation_the_headline_is_of_the_steps(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=2)
    (run / "summary.json").unlink()
    assert re.search(r"0\.257 → 0\.153</b><em>-40 %</em>.*first, last step", page_of(run))


def test_not_finite_numbers_are_gaps(tmp_path: Path) -> None:
    lines = ['{"step": 1, "loss": NaN, "seconds_step": 0}', '{"step": 2, "loss": Infinity, "tokens_trained": 3}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "summary.json").write_text('{"evaluation": {"before": {"reverse_kl": 0}, "after": {"reverse_kl": 1}}}')
    assert "0 → 1" in page_of(tmp_path)


def test_a_cut_samples_file_is_skipped(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", steps=2)
    path = run / "samples/step_000001.rank0.arrow"
    path.write_bytes(path.read_bytes()[:200])
    page = page_of(run)
    assert "s001-00" not in page and "s001-10" in page


def test_answers_are_matched_by_uid(tmp_path: Path) -> None:
    def row(i: int, text: str) -> synthetic.Sample:
        return synthetic.sample(f"h{i}", f"Question {i}?", text)

    synthetic.write_samples(tmp_path / "samples/eval_before.rank0.arrow", [row(1, "b1"), row(0, "b0")], [None] * 2)
    synthetic.write_samples(tmp_path / "samples/eval_before.rank1.arrow", [row(2, "b2")], [None])
    synthetic.write_samples(tmp_path / "samples/eval_after.rank0.arrow", [row(0, "a0 "), row(1, "a1")], [None] * 2)
    assert held_out_answers(tmp_path, synthetic.decode) == [
        Answer("h0", "Question 0?", "b0", "a0"),
        Answer("h1", "Question 1?", "b1", "a1"),
        Answer("h2", "Question 2?", "b2", None),
    ]


def test_a_prompt_without_chat_markers_is_shown_whole(tmp_path: Path) -> None:
    sample = synthetic.sample("h0", "", "x")
    sample.prompt_ids[:] = synthetic.encode("Once upon")
    synthetic.write_samples(tmp_path / "samples/eval_after.rank0.arrow", [sample], [None])
    assert held_out_answers(tmp_path, synthetic.decode) == [Answer("h0", "Once upon", None, "x")]
