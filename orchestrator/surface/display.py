"""Progress of a run: a live display on a terminal; elsewhere a line a step and a rare heartbeat."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from configs.evaluation import HELDOUT

HEARTBEAT_SECONDS = 30.0  # longest silence of a log without a terminal


class Display:
    """The observer that a person looks at. `steps`: the run's last step; `working()`: roles that are busy now."""

    working: Callable[[], Sequence[str]] = staticmethod(tuple)

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=False, highlight=False)
        self._steps = steps
        self._phase = ""
        self._line: Mapping[str, Any] = {}
        self._began = time.monotonic()
        self._first_step: tuple[int, float] | None = None
        self._ended = threading.Event()
        self._printed_at = time.monotonic()
        self._progress = Progress(BarColumn(40), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._task = self._progress.add_task("", total=steps)
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        else:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._console.is_terminal:
            self._live.stop()

    @property
    def current_phase(self) -> str:
        return self._phase

    def phase(self, text: str) -> None:
        if text != self._phase:
            self._phase = text
            self._say(text)

    def notice(self, text: str) -> None:
        """A line that stays on the screen."""
        self._print(text)

    def step(self, line: Mapping[str, Any]) -> None:
        self._line = line
        if self._first_step is None:
            self._first_step = (line["step"], time.monotonic())
        self._progress.update(self._task, completed=line["step"])
        self._say(f"step {line['step']}/{self._steps}  {self._numbers()}")

    def evaluated(self, when: str, result: Mapping[str, Any] | None, of: str = HELDOUT) -> None:
        if not result:
            return
        if of == HELDOUT:
            names, of = ("reverse_kl", "entropy", "response_length"), "held-out prompts"
        else:
            names = tuple(result.get("intervals") or ()) or ("entropy", "response_length")
        self._print(f"{of} ({when}): {'  '.join(f'{name} {_number(result[name])}' for name in names)}")

    def _draw(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(self._progress)
        if self._line:
            table.add_row(self._numbers())
        elapsed = time.monotonic() - self._began
        table.add_row(f"[dim]{elapsed:4.0f} s  {self._phase}  {self._roles()}[/dim]")
        return table

    def _numbers(self) -> str:
        line = self._line
        tokens = line["tokens_generated"] / line["seconds_step"] if line["seconds_step"] else 0.0
        return (
            f"reverse KL {_number(line['reverse_kl'])}  entropy {_number(line['entropy'])}  "
            f"{tokens:.0f} tokens/s  {self._time_left()}"
        )

    def _roles(self) -> str:
        working = self.working()
        return f"working: {', '.join(working)}" if working else ""

    def _time_left(self) -> str:
        if self._first_step is None or self._line["step"] == self._first_step[0]:
            left = (self._steps - self._line["step"]) * self._line["seconds_step"]
        else:
            done = self._line["step"] - self._first_step[0]
            left = (time.monotonic() - self._first_step[1]) / done * (self._steps - self._line["step"])
        return f"{int(left) // 60}:{int(left) % 60:02d} left"

    def _beat(self) -> None:
        while not self._ended.wait(1.0):
            if time.monotonic() - self._printed_at > HEARTBEAT_SECONDS:
                elapsed = time.monotonic() - self._began
                self._say(f"  ... {self._phase} ({elapsed:.0f} s)  {self._roles()}".rstrip())

    def _say(self, text: str) -> None:
        """Print a line, unless there is a live display."""
        if not self._console.is_terminal:
            self._print(text)

    def _print(self, text: str) -> None:
        self._printed_at = time.monotonic()
        self._console.print(text, markup=False, soft_wrap=True)
        sys.stdout.flush()


def answers_table(answers: Sequence[Any]) -> Table:
    """Held-out questions with the student's greedy answer before and after."""
    table = Table(title="Held-out questions, answered greedily", show_lines=True, expand=False)
    for column, width in (("question", 24), ("before", 36), ("after", 36)):
        table.add_column(column, max_width=width, overflow="fold")
    for answer in answers:
        table.add_row(*(_plain(text) for text in (answer.prompt, answer.before, answer.after)))
    return table


def _plain(text: str | None) -> Any:
    from rich.text import Text

    return Text("-" if text is None else " ".join(text.split()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
