"""The page: results first, then the cases, the training, and the plan with its reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from medmamba.evaluation.overlay import data_uri, overlay_png
from medmamba.evaluation.page import STYLE
from medmamba.geometry import Grid
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder
from medmamba.plans.explain import summary
from medmamba.plans.labels import label_names
from medmamba.plans.schema import Decision, Plan
from medmamba.run_report.cross_validation import CrossValidation, ShownCase
from medmamba.run_report.viewer import viewer_html
from medmamba.training.progress import read_metrics
from medmamba.training.report import COLOURS, curves_png

MORE_STYLE = """
nav a{margin-right:1rem}.viewer{background:#f4f4f4;padding:.6rem 1rem}.viewer label{margin-right:1rem}
.viewer canvas{background:#000;image-rendering:pixelated}.viewer input[type=range]{width:24rem;max-width:100%}
figure{display:inline-block;margin:.4rem}figure img{background:#000;width:16rem}figcaption{max-width:16rem}
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.3em}td.text,th.text{text-align:left;white-space:normal}
button{font:inherit}details{margin:.4rem 0}.note{background:#fff6dd;padding:.4em .8em;border-left:3px solid #ffb000}
"""
HELD_OUT = "<p>Dice of whole volumes on the plan's grid, each predicted by the fold that never saw it.</p>"
SEEN = """<p class="note">Only a model of all cases is trained, so these cases were seen in training: they show what the
network does, not how good it is. Train folds (<code>medmamba train RUN --fold 0-4</code>) for that.</p>"""
NEIGHBOURS = {"dataset.html": "the dataset", "training.html": "curves and examples", "evaluation.html": "evaluation"}


def run_page(run: RunFolder, plan: Plan, found: CrossValidation, neighbours: Sequence[str]) -> str:
    """The page; ``neighbours`` are other pages in the same folder."""
    title = f"{plan.dataset_name}: {found.configuration}"
    links = "".join(
        f'<a href="{escape(name)}">{escape(NEIGHBOURS.get(name, name.removesuffix(".html")))}</a>'
        for name in neighbours
    )
    parts = [
        f'<h1>{escape(title)}</h1><nav><a href="#results">results</a><a href="#cases">cases</a>'
        f'<a href="#viewer">viewer</a><a href="#training">training</a><a href="#plan">plan</a>{links}</nav>',
        '<h2 id="results">Results</h2>',
        _results(found),
        '<h2 id="cases">Worst and best cases</h2>',
        _cases(found, plan),
        "<h2>Viewer</h2>",
        _viewer(found, plan),
        '<h2 id="training">Training</h2>',
        _training(run, found.configuration),
        '<h2 id="plan">Plan</h2>',
        _plan(plan),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}{MORE_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _results(found: CrossValidation) -> str:
    structures = list(found.scores[0].dice) if found.scores else []
    intro = HELD_OUT if found.held_out else SEEN
    rows = []
    for name in [*structures, None]:
        whole = found.mean(name)
        cells = [f"{_number(found.mean(name, fold)[0])}" for fold in found.folds()]
        rows.append([escape(name or "mean"), f"{_number(whole[0])} ± {_number(whole[1])}", str(whole[2]), *cells])
    table = _table(["structure", "Dice", "cases", *map(escape, found.folds())], rows)
    ordered = sorted(found.scores, key=lambda score: (math.isnan(score.mean), score.mean))
    cases = [
        [escape(one.case_id), escape(one.fold), *(_number(value) for value in one.dice.values()), _number(one.mean)]
        for one in ordered
    ]
    every = _table(["case", "fold", *map(escape, structures), "mean"], cases)
    return f"{intro}{table}<details><summary>All {len(cases)} cases, the worst first</summary>{every}</details>"


def _cases(found: CrossValidation, plan: Plan) -> str:
    figures = []
    for number, (kind, case) in enumerate(_chosen(found)):
        order = (1, 2, 0)  # the picture is a slice of the last axis
        values = list(range(1, len(label_names(plan)) + 1))
        depth, height, width = case.image.shape
        png = overlay_png(
            case.truth.transpose(order),
            case.prediction.transpose(order),
            Grid((height, width, depth), None),
            values,
            case.image.transpose(order),
        )
        numbers = ", ".join(f"{escape(name)} {_number(value)}" for name, value in case.score.dice.items())
        figures.append(
            f'<figure><img alt="{escape(case.score.case_id)}" src="{data_uri(png)}"><figcaption><b>{kind}</b> '
            f"{escape(case.score.case_id)}: {numbers} "
            f'<a href="#viewer"><button type="button" data-case="{number}">look</button></a></figcaption></figure>'
        )
    return "<p>The slice that differs most; truth in white, prediction in colour.</p>" + "".join(figures)


def _viewer(found: CrossValidation, plan: Plan) -> str:
    names = label_names(plan)
    legend = "".join(
        f'<span class="swatch" style="background:{COLOURS[index % len(COLOURS)]}"></span>{escape(name)} '
        for index, name in enumerate(names)
    )
    titled = [
        (f"{kind}: {case.score.case_id} (Dice {_number(case.score.mean)})", case) for kind, case in _chosen(found)
    ]
    return f"<p>{legend}</p>{viewer_html(titled, names, COLOURS)}"


def _chosen(found: CrossValidation) -> list[tuple[str, ShownCase]]:
    """Worst, then best cases, each once."""
    seen = {case.score.case_id for case in found.worst}
    return [
        *(("worst", case) for case in found.worst),
        *(("best", case) for case in found.best if case.score.case_id not in seen),
    ]


def _training(run: RunFolder, configuration: str) -> str:
    parts = []
    for folder in run.trained_folds(configuration):
        rows = read_metrics(folder)
        if rows:
            steps, loss, score = (_shown(rows[-1].get(key)) for key in ("step", "loss", "validation_dice"))
            parts.append(
                f"<h3>{escape(folder.name)}</h3><p>{steps} steps, last loss {loss}, last validation Dice {score}</p>"
                f'<img alt="curves of {escape(folder.name)}" src="{data_uri(curves_png(rows))}">'
            )
    return "".join(parts) or "<p>No epoch was finished.</p>"


def _plan(plan: Plan) -> str:
    header, *rows = summary(plan)
    parts = [_table([escape(cell) for cell in header], [[escape(cell) for cell in row] for row in rows])]
    parts.append(_decisions("The dataset", plan.decisions))
    for name, part in plan.configurations.items():
        parts.append(_decisions(f"Configuration {name}", part.decisions, shown=name == plan.default_configuration))
    channels = ", ".join(escape(name) for name in OutputChannels.of_plan(plan).names)
    return f"<p>Channels in: {escape(', '.join(plan.channel_names))}. Out: {channels}.</p>{''.join(parts)}"


def _decisions(title: str, decisions: Sequence[Decision], shown: bool = True) -> str:
    rows = "".join(
        f'<tr><td>{escape(one.name)}</td><td class="text">{escape(_shown(one.value))}</td>'
        f'<td class="text">{escape(one.reason)}</td></tr>'
        for one in decisions
    )
    state = " open" if shown else ""
    heads = '<th>decision</th><th class="text">value</th><th class="text">reason</th>'
    return (
        f"<details{state}><summary>{escape(title)}</summary><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></details>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
