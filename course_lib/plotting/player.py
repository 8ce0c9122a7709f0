"""What both viewers share: a play button, a slider and a label, their style and their script."""

from __future__ import annotations

import html
from collections.abc import Sequence

from course_lib.plotting.style import PALETTE

__all__ = ["KEYS", "PLAYER", "controls", "controls_css"]

KEYS = 'data-lm-suppress-shortcuts="true"'  # else JupyterLab takes arrows and Enter itself

# Part of a script that has defined `root`, `slider`, `button`, `draw()` and `pace()`, the
# milliseconds a state. Nothing moves before the button is pressed, so readers who ask for less
# motion get none.
PLAYER = """\
  let timer = null;
  const pause = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "\\u25B6 Play";
  };
  const advance = () => {
    if (!root.isConnected) return pause();
    slider.value = Number(slider.value) + 1;
    draw();
    if (slider.value === slider.max) pause();
  };
  button.addEventListener("click", () => {
    if (timer !== null) return pause();
    if (slider.value === slider.max) { slider.value = 0; draw(); }
    button.textContent = "\\u275A\\u275A Pause";
    timer = setInterval(advance, pace());
  });
  slider.addEventListener("input", () => { pause(); draw(); });
"""


def controls(labels: Sequence[str], at: int, name: str) -> str:
    """Play button, slider and label; the script shows them once they work.

    Args:
        labels: one for each position of the slider.
        at: where the slider stands.
        name: what one position is called, for screen readers.
    """
    label = html.escape(labels[at])
    return (
        '<div class="course-controls">\n'
        f'<button type="button" {KEYS}>&#9654; Play</button>\n'
        f'<input type="range" min="0" max="{len(labels) - 1}" value="{at}" autocomplete="off" '
        f'{KEYS} aria-label="{name}" aria-valuetext="{label}">\n'
        f'<span class="course-label" aria-hidden="true">{label}</span>\n</div>\n'
    )


def controls_css(viewer: str) -> str:
    """The style of the controls inside of the class ``viewer``."""
    return f"""\
.{viewer} .course-controls{{display:none;flex-wrap:wrap;gap:.5rem .75rem;\
justify-content:center;align-items:center;margin:.5rem auto 0;max-width:40rem}}
.{viewer} :is(button,select){{min-height:2.5rem;font:inherit;color:inherit;\
background:transparent;border:1px solid currentColor;border-radius:.375rem;cursor:pointer}}
.{viewer} button{{min-width:5.5rem}}
.{viewer} input{{flex:1;min-width:4rem;height:2.5rem;accent-color:{PALETTE[0]}}}
.{viewer} .course-label{{min-width:6rem;text-align:left;font-variant-numeric:tabular-nums}}
.{viewer} :is(button,select,input):focus-visible{{outline:2px solid {PALETTE[0]};\
outline-offset:2px}}
"""
