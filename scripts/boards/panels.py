"""Panels and boards in the shapes that all three share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from scripts.boards.queries import Query, meaning, names

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
BOARDS = {
    "run": "Run: is it learning?",
    "flow": "Flow: where is the time?",
    "health": "Health: what died, what is stale?",
}
WIDTH = 24  # columns of Grafana's grid

NATS = "suffix: nats"
SHARE = "percentunit"
SECONDS = "s"
COUNT = "short"
BYTES = "bytes"
TOKENS = "suffix: tokens"
PLAIN = "none"


class Builder(Protocol):
    """What every panel's builder has."""

    def build(self) -> model.Panel: ...


def curves(
    title: str, unit: str, *queries: Query, note: str = "", width: int = 8, stacked: bool = False, **more: Any
) -> timeseries.Panel:
    """Curves over time. `stacked`: areas on top of each other."""
    panel = _begun(timeseries.Panel(), title, unit, queries, note, width, 8)
    panel.legend(_legend(len(queries) > 1 or any("{{" in query.legend for query in queries))).tooltip(_tooltip())
    panel.line_width(1).show_points(options.VisibilityMode.NEVER).span_nulls(60_000.0)
    panel.fill_opacity(60 if stacked else 0)
    if stacked:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    if more.get("logarithmic"):
        panel.scale_distribution(common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(10))
    return _bounded(panel, more)


def number(
    title: str, unit: str, query: Query, note: str = "", width: int = 4, *, by_name: bool = False, **more: Any
) -> stat.Panel:
    """One number, as it is now. `by_name`: show the series' names instead."""
    panel = _begun(stat.Panel(), title, unit, [query], note, width, 4)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).no_value(more.get("none", "none"))
    panel.color_mode(options.BigValueColorMode.VALUE).graph_mode(options.BigValueGraphMode.NONE)
    if by_name:
        panel.text_mode(options.BigValueTextMode.NAME)
    return _limited(panel, more)


def bars(title: str, unit: str, query: Query, note: str = "", width: int = 8, **more: Any) -> bargauge.Panel:
    """A bar for each series, as it is now."""
    panel = _begun(bargauge.Panel(), title, unit, [query], note, width, 4)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
    return _bounded(panel, more)


def rows(title: str, unit: str, *queries: Query, note: str = "", width: int = 8, none: str = "") -> table.Panel:
    """A table of what is now: labels, and a column for each query that has a legend."""
    panel = _begun(table.Panel(), title, unit, queries, note, width, 8)
    panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    values = {"Value": queries[0]} | {f"Value #{_letter(index)}": query for index, query in enumerate(queries)}
    hidden = dict.fromkeys(["Time", *(name for name, query in values.items() if not query.legend)], True)
    named = {name: query.legend for name, query in values.items() if query.legend}
    organized = {"excludeByName": hidden, "renameByName": named}
    panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=organized))
    return panel.no_value(none) if none else panel


def board(key: str, rows_of: Sequence[tuple[str, Iterable[Builder]]], variables: Sequence[Any] = ()) -> dict[str, Any]:
    """A whole board, as Grafana reads it."""
    made = dashboard.Dashboard(f"logratio · {BOARDS[key]}").uid(f"logratio-{key}").tags(["logratio"])
    made.readonly().refresh("10s").time("now-1h", "now").timezone("browser")
    made.tooltip(model.DashboardCursorSync.CROSSHAIR)
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    made.with_variable(variable("run", "Run", "label_values(ray_logratio_steps_planned, run)"))
    for one in variables:
        made.with_variable(one)
    made.link(
        dashboard.DashboardLink("logratio")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags(["logratio"])
        .include_vars(True)
        .keep_time(True)
    )
    for title, panels in rows_of:
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel)  # type: ignore[arg-type]
    found = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    del found["style"]  # the theme is the reader's
    for at, panel in enumerate(found["panels"], 1):
        panel["id"] = at
    return found


def variable(name: str, label: str, query: str, *, many: bool = False) -> dashboard.QueryVariable:
    """A choice that Prometheus gives. `many`: all at once, and no box for it."""
    made = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    made.query({"query": query, "refId": name}).refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    made.sort(model.VariableSort.ALPHABETICAL_ASC)
    if many:
        made.multi(True).include_all(True).hide(model.VariableHide.HIDE_VARIABLE)
        made.current(model.VariableOption(selected=True, text="All", value="$__all"))
    return made


def _begun(panel: Any, title: str, unit: str, queries: Sequence[Query], note: str, width: int, height: int) -> Any:
    panel.title(title).unit(unit).description(_description(queries, note)).datasource(SOURCE).span(width).height(height)
    for index, query in enumerate(queries):
        panel.with_target(_target(query, _letter(index)))
    return panel


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(SOURCE)
    if query.now or query.table:
        target.instant()
    else:
        target.range()
    return target.format(PromQueryFormat.TABLE if query.table else PromQueryFormat.TIME_SERIES)


def _description(queries: Sequence[Query], note: str) -> str:
    """The note, and the meaning of each metric that is drawn."""
    found = list(dict.fromkeys(name for query in queries for name in names(query.expr)))
    lines = [f"`{short}`: {text}." for short, text in map(meaning, found)]
    return "\n\n".join([note, *lines] if note else lines)


def _bounded(panel: Any, more: dict[str, Any]) -> Any:
    if more.get("low") is not None:
        panel.min(more["low"])
    if more.get("high") is not None:
        panel.max(more["high"])
    return panel


def _limited(panel: Any, more: dict[str, Any]) -> Any:
    """Green below the limit `bad`, red from there on."""
    steps = [model.Threshold(value=None, color="green")]
    if more.get("bad") is not None:
        steps.append(model.Threshold(value=more["bad"], color="red"))
    panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    return panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))


def _legend(shown: bool) -> common.VizLegendOptions:
    legend = common.VizLegendOptions().placement(options.LegendPlacement.BOTTOM).calcs(["lastNotNull"] if shown else [])
    return legend.display_mode(options.LegendDisplayMode.LIST).show_legend(shown)


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.NONE)


def _letter(index: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]
