"""The command line. Exit codes: 0 done; 1 the run failed; 2 bad recipe or environment; 3 stopped, resumable."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.hardware import cpu_has_bf16, resolve_dtypes
from configs.load import RecipeError, current_folder, load_recipe, load_tree, parse_recipe, with_swaps
from configs.names.own_code import imported
from configs.node import STUDENT
from configs.pipeline import STAGES
from configs.refusal import looked_at, reason
from configs.roles.sizes import role_of
from configs.schema import Recipe
from orchestrator.surface import submission
from orchestrator.surface.arguments import Overrides, RecipePath, paths_of, run_named, sizes_of
from orchestrator.surface.carry_out import STOPPED
from orchestrator.surface.measuring.commands import probe
from orchestrator.surface.outcome import console, say_error
from orchestrator.surface.pipelines.folders import begun_stages, stage_under_way
from orchestrator.surface.research import commands as research
from orchestrator.surface.submission import Standing, run_directory

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs

SIDE_BY_SIDE = 2  # runs on a live page

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its directory.")]


@app.command()
def run(context: typer.Context, recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train RECIPE in its run directory. Run again, it goes on where it was cut short; a run that is done stays as it
    is, one that a person stopped waits for `resume`, and one of another recipe is refused."""
    from orchestrator.preflight.cluster import is_alive
    from orchestrator.surface import checked

    tree = load_tree(recipe, overrides or ())
    if STAGES in tree:
        raise typer.Exit(_pipelines().run(tree, overrides or (), context.obj))
    loaded = parse_recipe(tree)
    directory = run_directory(loaded.run.name, loaded.run.root)
    stands = submission.standing(directory)
    if stands is Standing.NEW:
        resolved = resolve_dtypes(_pinned(loaded), cpu_has_bf16())
    else:
        resolved = submission.same_recipe(directory, loaded)
    if stands is Standing.DONE:
        console.print(f"{directory} is done; choose another run.name to train anew", markup=False, soft_wrap=True)
        return
    if stands is Standing.STOPPED and not is_alive(directory):
        console.print(
            f"{directory} was stopped by a person; go on with: logratio resume {directory.name}", markup=False
        )
        raise typer.Exit(STOPPED)
    checked.environment(resolved, directory)
    _execute(_pinned(resolved), directory, context)


@app.command()
def resume(context: typer.Context, run: RunName) -> None:
    """Continue RUN from its newest whole checkpoint, with the same data order and seeds."""
    from orchestrator.preflight.cluster import is_alive
    from orchestrator.surface import checked

    directory = run_named(run)
    if submission.is_pipeline(directory):
        raise typer.Exit(_pipelines().resume(directory, context.obj))
    recipe = submission.recorded_recipe(directory)
    checked.environment(recipe, directory)
    if not is_alive(directory):
        submission.forget_stop(directory)
    _execute(_pinned(recipe), directory, context)


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Also compare with the reachable cluster.")] = False,
    cluster_spec: Annotated[
        Path | None,
        typer.Option("--cluster-spec", metavar="FILE", help="Compare with the cluster that FILE describes."),
    ] = None,
) -> None:
    """Validate RECIPE and its files, and print the layout. Starts nothing."""
    from orchestrator.surface import checked

    tree = load_tree(recipe, overrides or ())
    if STAGES in tree:
        return _pipelines().check(tree, overrides or (), cluster, cluster_spec)
    resolved = resolve_dtypes(_pinned(parse_recipe(tree)), cpu_has_bf16())
    if cluster_spec is not None:
        return checked.on_described_cluster(resolved, cluster_spec)
    directory = run_directory(resolved.run.name, resolved.run.root)
    inputs = checked.here(resolved)
    if cluster:
        checked.environment(resolved, directory)
        checked.on_reachable_cluster(resolved, inputs, directory)


@app.command()
def audit(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODULE:FUNCTION", help="A recipe, or a loss of your own.")],
    overrides: Overrides = None,
    claims: Annotated[
        str | None, typer.Option(help="The divergence that a function should descend: reverse_kl or forward_kl.")
    ] = None,
) -> None:
    """Compute the exact gradient of an objective on small trees: which divergence it descends, its bias, its noise.

    Exit code 1 when it finds a defect.
    """
    from audit import audit as audit_objective
    from audit import describe

    if claims not in (None, "reverse_kl", "forward_kl"):
        raise RecipeError(f"--claims {claims!r}: say reverse_kl or forward_kl")
    try:
        result = audit_objective(_audited(target, overrides), claims)  # type: ignore[arg-type]
    except ValueError as error:
        raise RecipeError(f"{target}: {error}") from None
    console.print(describe(result), markup=False, soft_wrap=True)
    if any(finding.severity == "defect" for finding in result.findings):
        raise typer.Exit(1)


@app.command()
def reward(
    recipe: RecipePath,
    on: Annotated[Path, typer.Option("--on", metavar="FILE", help="Responses: JSON lines, a row with its response.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every response's reward as JSON.")] = False,
) -> None:
    """Reward the responses of a file as RECIPE says, without a run. Exit code 1 when every one is rejected."""
    from orchestrator.surface import tried_rewards

    tried = tried_rewards.on(_load(recipe, overrides), on)
    if as_json:
        typer.echo(tried.to_json())
    else:
        console.print(tried.table())
        for line in tried.lines():
            console.print(line, markup=False, soft_wrap=True)
    if not tried.rewarded:
        raise typer.Exit(1)


@app.command()
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, a checkpoint, or a run.")],
    overrides: Overrides = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="RECIPE", help="Whose held-out sets; by default the run's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the results as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Evaluate MODEL on the held-out sets of RECIPE, by the engines of a run, and print a table. Trains nothing."""
    from orchestrator.surface import checked
    from orchestrator.surface.measuring import evaluating

    subject = evaluating.subject_of(Path(model) if looked_at(Path(model)).is_dir() else run_named(model))
    loaded = _pinned(load_recipe(recipe or subject.own_recipe, overrides or ()))
    resolved = resolve_dtypes(evaluating.recipe_for(loaded, subject), cpu_has_bf16())
    checked.environment(resolved, directory := run_directory(resolved.run.name, resolved.run.root))
    if code := evaluating.carry_out_of(subject, resolved, directory, context.obj):
        raise typer.Exit(code)
    evaluating.tell(directory, subject, loaded.path_of(STUDENT), out, as_json)


app.command()(probe)


@app.command()
def stop(run: RunName) -> None:
    """Stop RUN after the step under way, or now if there is none. It saves a checkpoint and exits with 3."""
    from orchestrator.preflight import cluster

    directory = run_named(run, cluster.LOCK)
    try:
        with cluster.attached(stage_under_way(directory)) as control:
            _get(control.send.remote("stop", {}))
    except RecipeError:
        if not cluster.ask_to_stop(directory):
            raise
    console.print(f"{run}: stopping after the step under way")


@app.command()
def status(run: RunName) -> None:
    """Show the members of RUN, how busy its roles are, its bottleneck, and what one more member would bring."""
    from orchestrator.surface import status as views

    with _control(run) as control:
        state = _state_of(run, control)
    console.print(views.headline(state))
    console.print(views.members_table(state))
    console.print(views.roles_table(state))
    for line in views.swap_lines(state):
        console.print(line, markup=False, soft_wrap=True)
    console.print(views.bottleneck_line(state), soft_wrap=True)


@app.command()
def watch(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN [RUN2]", help="One run, or two side by side.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Open a recorded run.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="A port of this machine; 0 takes a free one.")] = 0,
) -> None:
    """Serve a live page of RUN to a browser on this machine, until Ctrl-C. Needs no cluster; opens ended runs too. Of a
    recipe with stages it opens the last two that began."""
    from orchestrator.surface.watch.server import DEMO, serve

    if demo == bool(runs) or len(runs or ()) > SIDE_BY_SIDE:
        raise RecipeError("watch: name one run or two, or say --demo")
    found = [begun_stages(run_named(run)) or [run_named(run)] for run in runs or ()]
    shown = found[0][-SIDE_BY_SIDE:] if len(found) == 1 else [stages[-1] for stages in found]
    serve([DEMO] if demo else shown, port)


@app.command()
def scale(run: RunName, sizes: Annotated[list[str], typer.Argument(metavar="ROLE=N...")]) -> None:
    """Change how many members the roles of RUN have, e.g. rollout=4 scorer.teacher=2. Those of a role's kinds stay."""
    from orchestrator.surface.status import of_kinds

    wanted = sizes_of(sizes)
    with _control(run) as control:
        state = _state_of(run, control)
        _refuse_fixed_roles(wanted, state["roles"])
        _get(control.send.remote("scale", wanted))
    kinds = of_kinds(state)
    parts = (
        f"{role}={n}" + (f" beside {kinds[role]} of its kinds" if kinds[role] else "") for role, n in wanted.items()
    )
    console.print(f"{run}: scaling to {', '.join(parts)}", soft_wrap=True)


@app.command()
def swap(run: RunName, models: Annotated[list[str], typer.Argument(metavar="MODEL=DIRECTORY...")]) -> None:
    """Swap other weights into the scorers of RUN after the step under way, e.g. teacher=/models/teacher-2.

    The swap is written to the run's recipe, so that a resume keeps it.
    """
    from orchestrator.preflight import files

    recipe, paths = load_recipe(stage_under_way(run_named(run)) / "recipe.yaml"), paths_of(models)
    with _control(run) as control:
        step = _state_of(run, control)["step"]
        files.check_swap(recipe, with_swaps(recipe, step + 2, paths))
        _get(control.send.remote("swap", paths))
    console.print(
        f"{run}: after the step under way, {', '.join(f'{model} becomes {p}' for model, p in paths.items())}",
        soft_wrap=True,
    )


@app.command()
def export(
    run: RunName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory that is not there yet.")],
    checkpoint: Annotated[
        int | None, typer.Option(metavar="N", help="The weights that were saved after step N.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best weights by checkpoint.best.")] = False,
) -> None:
    """Write what RUN trained to OUT, for transformers and vLLM, with a model card. Of a recipe with stages: what the
    last one trained."""
    from orchestrator.surface.export.export import export as written

    which = written(run_named(run), out.absolute(), checkpoint, best)
    console.print(f"{out}: {which}, and a model card", markup=False, soft_wrap=True)


def _audited(target: str, overrides: list[str] | None) -> Any:
    """A recipe's objective, or the function `module:function`; modules are also looked for in the current folder."""
    sys.path.insert(0, str(current_folder()))
    if Path(target).suffix in (".yaml", ".yml") or ":" not in target:
        objective = load_recipe(Path(target), overrides or ()).objective
        if objective.loss:
            _imported(objective.loss)
        return objective
    return _imported(target)


def _imported(path: str) -> Any:
    try:
        return imported(path)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise RecipeError(f"{path}: cannot be imported ({reason(error)}); write module:function") from None


def main(members: MemberSpecs | None = None) -> None:
    """Entry point. Bad input becomes a line for each finding, and exit code 2. `members`: see build_pools."""
    warnings.filterwarnings("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without a character still gets the line
    try:
        sys.exit(app(standalone_mode=False, obj=members) or 0)
    except RecipeError as error:
        for line in error.lines:
            say_error(line)
        sys.exit(2)
    except Exception as error:
        if not type(error).__module__.startswith(("click", "typer")):
            raise
        say_error(error.format_message() if hasattr(error, "format_message") else str(error))  # type: ignore[attr-defined]
        sys.exit(2)


def _execute(recipe: Recipe, directory: Path, context: typer.Context) -> None:
    """Carry out the run and exit with its code."""
    from orchestrator.surface.carry_out import carry_out

    raise typer.Exit(carry_out(recipe, directory, context.obj))


def _load(path: Path, overrides: Sequence[str] | None) -> Recipe:
    return resolve_dtypes(_pinned(load_recipe(path, overrides or ())), cpu_has_bf16())


def _pinned(recipe: Recipe) -> Recipe:
    """The recipe with names on the Hub at commits that this machine has. Raises RecipeError."""
    from orchestrator.preflight.inputs import hub

    return hub.pinned(recipe)


def _pipelines() -> Any:
    from orchestrator.surface.pipelines import commands

    return commands


@contextlib.contextmanager
def _control(run: str) -> Iterator[Any]:
    from orchestrator.preflight import cluster

    with cluster.attached(stage_under_way(run_named(run))) as control:
        yield control


def _get(ref: Any) -> Any:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(ref, timeout=30)
    except RayError as error:
        raise RecipeError(f"the run gave no answer ({reason(error)}); it may have ended, else ask again") from None


def _refuse_fixed_roles(wanted: Mapping[str, int], roles: Sequence[Mapping[str, Any]]) -> None:
    elastic = {role["role"]: role["elastic"] for role in roles}
    allowed = [role for role in elastic if elastic[role]]
    for role in wanted:
        if (of := role_of(role)) != role and of in elastic:
            raise RecipeError(f"{role}: members of a kind stay as many as the recipe says; scale {of}")
        if role not in elastic:
            raise RecipeError(f"{role}: no such role in this run; allowed: {allowed}")
        if not elastic[role]:
            raise RecipeError(f"{role}: does not change its size in a live run; allowed: {allowed}")


def _state_of(run: str, control: Any) -> dict[str, Any]:
    """The last status that the run reported. Raises RecipeError before the first."""
    if state := _get(control.status.remote()):
        return state
    raise RecipeError(f"{run}: has not said how it is yet; ask again in a second")


app.command()(research.compare)
app.command()(research.replay)
app.command()(research.sweep)


if __name__ == "__main__":
    main()
