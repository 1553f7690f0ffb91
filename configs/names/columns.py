"""The columns of a prompt row that `logratio` reads itself. The only place that spells them; any other field of a row
is at the disposal of prompts, rewards and routes."""

from __future__ import annotations

PROMPT, MESSAGES, RESPONSE, ANSWER, TESTS = "prompt", "messages", "response", "answer", "tests"
SOLUTION, TEACHER, WEIGHT, SOURCE = "solution", "teacher", "weight", "source"

COLUMNS: dict[str, str] = {
    PROMPT: "the user's text, or a list of messages",
    MESSAGES: "a chat; the prompt is what stands before its last assistant turn",
    RESPONSE: "a demonstration; without it, the last assistant turn of the messages",
    ANSWER: "the expected answer, for rewards",
    TESTS: "tests of code, for rewards",
    SOLUTION: "a solution, for a privileged prompt: models.teacher.prompt",
    TEACHER: "the name that a routed target goes by",
    WEIGHT: "how often the row is drawn, relative to the other rows of its set; null: 1",
    SOURCE: "the name of the set that the row comes from",
}
