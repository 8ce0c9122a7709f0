"""The trajectory viewer: paths of points under menus and a slider, alive without a kernel.

Every combination of the menus is solved beforehand and travels in the page as plain numbers; a
script of some forty lines draws the chosen one as SVG. Without scripts the first combination stays
as an ordinary figure.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from course_lib.plotting.display import as_text, checked_alt, publish, wrap
from course_lib.plotting.planes import LogProb, heights
from course_lib.plotting.player import KEYS, PLAYER, controls, controls_css
from course_lib.plotting.render import encoded
from course_lib.plotting.style import PALETTE

__all__ = ["Run", "trajectory_viewer", "trajectory_viewer_html"]


@dataclass(frozen=True)
class Run:
    """Paths of points, what is said of each moment, and what is said of the whole."""

    states: Tensor
    """States along the way, shape (S+1, B, 2)."""
    labels: Sequence[str]
    """What each state is, such as "t = 0.30"; S+1 of them. Read aloud by screen readers."""
    note: str = ""
    """What came of it, such as "8 evaluations, mean error 0.12"."""


_CSS = f"""\
<style>
.course-trajectories svg{{max-width:100%;height:auto;touch-action:manipulation}}
.course-trajectories text{{fill:currentColor;font:70px sans-serif}}
.course-trajectories :is(polyline,path,circle,rect){{fill:none;vector-effect:non-scaling-stroke}}
.course-trajectories rect{{stroke:currentColor;opacity:.4}}
.course-trajectories polyline{{stroke:{PALETTE[0]};stroke-width:1.2px;opacity:.75}}
.course-trajectories .course-states{{stroke:{PALETTE[0]};stroke-width:4px;stroke-linecap:round}}
.course-trajectories .course-now{{stroke:{PALETTE[1]};stroke-width:8px;stroke-linecap:round}}
.course-trajectories circle{{stroke:{PALETTE[2]};stroke-width:2px}}
.course-trajectories option{{color:#1f2328;background:#ffffff}}
{controls_css("course-trajectories")}.course-trajectories p{{margin:.4rem auto 0;text-align:center}}
</style>
"""

_SCRIPT = (
    """\
<script>
document.querySelectorAll(".course-trajectories:not([data-ready])").forEach((root) => {
  root.dataset.ready = "true";
  const runs = JSON.parse(root.dataset.runs), find = (name) => root.querySelector(name);
  const selects = [...root.querySelectorAll("select")], lines = root.querySelectorAll("polyline");
  const slider = find("input"), button = find("button"), label = find(".course-label");
  let run, paths;
  const pace = () => 4000 / (Number(slider.max) + 4);
  const dots = (points) => points.map((point) => "M" + point + "h0").join("");
  const draw = () => {
    const i = Number(slider.value), shown = paths.map((path) => path.slice(0, i + 1));
    lines.forEach((line, k) => line.setAttribute("points", shown[k].join(" ")));
    find(".course-states").setAttribute("d", dots(shown.flat()));
    find(".course-now").setAttribute("d", dots(shown.map((path) => path[i])));
    label.textContent = run.labels[i];
    slider.setAttribute("aria-valuetext", run.labels[i]);
  };
  const choose = () => {
    const part = Number(slider.value) / Number(slider.max);
    run = runs[selects.map((select) => select.selectedIndex).join()];
    paths = run.paths.split("|").map((path) => path.split(" "));
    slider.max = paths[0].length - 1;
    slider.value = Math.round(part * slider.max);
    find(".course-note").textContent = run.note;
    draw();
  };
"""
    + PLAYER
    + """\
  selects.forEach((select) => select.addEventListener("change", () => { pause(); choose(); }));
  root.querySelectorAll(".course-controls").forEach((row) => { row.style.display = "flex"; });
  choose();
});
</script>
"""
)


def trajectory_viewer(
    runs: Mapping[tuple[str, ...], Run],
    *,
    menus: Sequence[str],
    limit: float,
    alt: str,
    caption: str | None = None,
    start: tuple[str, ...] | None = None,
    goal: Tensor | None = None,
    density: LogProb | None = None,
    width: int = 440,
) -> None:
    """Display paths of points in the plane, one of several at a time, chosen by menus.

    A slider and a play button follow the chosen paths state by state.

    Args:
        runs: for each combination of options, one from each menu, its paths; every combination,
            with the same number of points.
        menus: what the options of each menu are, such as ("solver", "steps").
        limit: the axes run from -limit to limit.
        alt: what the figure shows: the finding, in a sentence.
        caption: text below; TeX between dollar signs becomes a formula.
        start: the combination that is shown first; by default the first option of each menu.
        goal: where the points should arrive, shape (B, 2), drawn as rings.
        density: log-density to draw, shaded, behind the paths.
        width: width on the page in pixels.

    Raises:
        ValueError: if ``alt`` is empty, a combination is missing, or shapes do not fit.
    """
    markup = trajectory_viewer_html(
        runs,
        menus=menus,
        limit=limit,
        alt=alt,
        caption=caption,
        start=start,
        goal=goal,
        density=density,
        width=width,
    )
    publish(markup, alt)


def trajectory_viewer_html(
    runs: Mapping[tuple[str, ...], Run],
    *,
    menus: Sequence[str],
    limit: float,
    alt: str,
    caption: str | None = None,
    start: tuple[str, ...] | None = None,
    goal: Tensor | None = None,
    density: LogProb | None = None,
    width: int = 440,
) -> str:
    """The HTML that :func:`trajectory_viewer` displays; the arguments are the same.

    Raises:
        ValueError: as :func:`trajectory_viewer` does.
    """
    alt = checked_alt(alt)
    options = _options(runs, menus)
    packed = {}
    for choice in product(*options):
        key = ",".join(str(names.index(name)) for names, name in zip(options, choice, strict=True))
        packed[key] = _packed(runs[choice], limit)
    start = tuple(names[0] for names in options) if start is None else start
    if start not in runs:
        raise ValueError(f"start must be one of the keys of runs; got {start}")
    first = _packed(runs[start], limit)
    parts = [_background(density, limit), _rings(goal, limit), _paths(first["paths"])]
    size = f'viewBox="-1080 -1040 2160 2160" width="{width}" height="{width}"'
    svg = f'<svg {size} role="img" aria-label="{alt}">\n{"".join(parts)}{_frame(limit)}</svg>\n'
    data = html.escape(json.dumps(packed, separators=(",", ":")))
    attributes = f'class="course-figure course-trajectories" data-runs="{data}"'
    content = svg + _LEGEND[goal is None] + _controls(menus, options, start, first)
    return _CSS + wrap(content, caption, attributes) + _SCRIPT


def _options(runs: Mapping[tuple[str, ...], Run], menus: Sequence[str]) -> list[list[str]]:
    """The options of each menu, in the order in which they first appear."""
    if not runs or any(len(choice) != len(menus) for choice in runs):
        raise ValueError(
            f"runs must have keys with one option from each of the menus {list(menus)}; "
            f"got {list(runs)[:3]}"
        )
    options = [list(dict.fromkeys(names)) for names in zip(*runs, strict=True)]
    missing = [choice for choice in product(*options) if choice not in runs]
    counts = {run.states.shape[1:] for run in runs.values()}
    if missing or len(counts) != 1:
        raise ValueError(
            f"runs must hold every combination, each with the same points; missing are "
            f"{missing[:3]}, the points have the shapes {sorted(counts)}"
        )
    return options


def _packed(run: Run, limit: float) -> dict[str, Any]:
    """A run as it travels in the page: "x,y x,y ..." for each point, the points parted by "|"."""
    states = run.states
    if states.ndim != 3 or states.shape[-1] != 2 or 0 in states.shape:
        raise ValueError(f"states must have shape (S+1, B, 2); got {tuple(states.shape)}")
    if len(run.labels) != len(states):
        raise ValueError(
            f"labels must have one entry a state; got {len(run.labels)} for {len(states)} states"
        )
    paths = [" ".join(f"{x},{y}" for x, y in path) for path in _units(states, limit)]
    return {"paths": "|".join(paths), "labels": [str(s) for s in run.labels], "note": run.note}


def _units(points: Tensor, limit: float) -> list[list[list[int]]]:
    """Whole numbers, a thousand for ``limit``, y downwards; shape (B, S+1, 2)."""
    scale = torch.tensor([1000.0, -1000.0], dtype=torch.float64) / limit
    units = (points.detach().cpu().double() * scale).nan_to_num(0, 9999, -9999).clamp(-9999, 9999)
    return units.round().long().transpose(0, 1).tolist()


def _paths(packed: str) -> str:
    """The lines of a run, its states and its ends."""
    paths = [path.split(" ") for path in packed.split("|")]
    lines = "".join(f'<polyline points="{" ".join(path)}"/>' for path in paths)
    states = "".join(f"M{point}h0" for path in paths for point in path)
    ends = "".join(f"M{path[-1]}h0" for path in paths)
    return f'{lines}\n<path class="course-states" d="{states}"/>\n' + (
        f'<path class="course-now" d="{ends}"/>\n'
    )


def _rings(goal: Tensor | None, limit: float) -> str:
    """A ring around each point of the goal."""
    if goal is None:
        return ""
    points = [path[0] for path in _units(goal[None], limit)]
    return "".join(f'<circle cx="{x}" cy="{y}" r="32"/>' for x, y in points) + "\n"


def _background(density: LogProb | None, limit: float) -> str:
    """The density as a small picture, opaque where it is high."""
    if density is None:
        return ""
    from PIL import Image

    height = heights(density, limit, resolution=96).flip(0)  # rows of a picture run downwards
    alpha = (height * 190).round().byte()
    colour = [int(PALETTE[5][i : i + 2], 16) for i in (1, 3, 5)]
    pixels = torch.cat(
        [torch.tensor(colour, dtype=torch.uint8).expand(96, 96, 3), alpha[..., None]], dim=-1
    )
    picture = Image.fromarray(pixels.numpy())
    source = f"data:image/png;base64,{as_text(encoded(picture))}"
    return f'<image href="{source}" x="-1000" y="-1000" width="2000" height="2000"/>\n'


def _frame(limit: float) -> str:
    """A frame with a number at -n, 0 and n on both axes."""
    n = int(limit) or limit
    marks = ['<rect x="-1000" y="-1000" width="2000" height="2000"/>']
    for value in (-n, 0, n):
        at = round(1000 * value / limit)
        marks.append(f'<text x="{at}" y="1075" text-anchor="middle">{value:g}</text>')
        marks.append(f'<text x="-1010" y="{25 - at}" text-anchor="end">{value:g}</text>')
    return "".join(marks) + "\n"


def _controls(
    menus: Sequence[str],
    options: Sequence[Sequence[str]],
    start: Sequence[str],
    first: Mapping[str, Any],
) -> str:
    """Menus, play button, slider and label; the script shows them once they work."""
    labels, note = first["labels"], html.escape(first["note"])
    boxes = [_menu(*parts) for parts in zip(menus, options, start, strict=True)]
    return (
        f'<p class="course-note" aria-live="polite">{note}</p>\n'
        f'<div class="course-controls">\n{"".join(boxes)}</div>\n'
        + controls(labels, len(labels) - 1, "Step")
    )


def _menu(menu: str, names: Sequence[str], chosen: str) -> str:
    """One menu, with one option chosen."""
    marks = ["" if name != chosen else " selected" for name in names]
    options = "".join(
        f"<option{mark}>{html.escape(name)}</option>"
        for name, mark in zip(names, marks, strict=True)
    )
    return (
        f'<label>{html.escape(menu)} <select {KEYS} autocomplete="off">{options}</select></label>\n'
    )


_NOW = f'<span style="color:{PALETTE[1]}">&#9679;</span> where the points are'
_GOAL = f', <span style="color:{PALETTE[2]}">&#9711;</span> where they should end'
_LEGEND = {True: f"<p>{_NOW}</p>\n", False: f"<p>{_NOW}{_GOAL}</p>\n"}
