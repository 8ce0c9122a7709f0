"""The trajectory viewer's HTML: numbers of every run, menus, and a still picture of the first."""

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from course_lib.plotting import PALETTE, Run, trajectory_viewer
from course_lib.plotting.trajectory_viewer import trajectory_viewer_html

STATES = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.5], [-1.0, -2.0]]])  # 2 points, 1 step
LONG = torch.cat([STATES, torch.zeros(1, 2, 2)])


class Tags(HTMLParser):
    """Attributes of the start tags, by name, and the text."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.words = {}, []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))

    def handle_data(self, data):
        self.words.append(data)

    def __getitem__(self, name):
        return self.tags[name]


def runs():
    short, long = Run(STATES, ["t = 1", "t = 0"], "one <step>"), Run(LONG, "abc", "two")
    return {("euler", "1"): short, ("euler", "2"): long, ("heun", "1"): short, ("heun", "2"): long}


def page(chosen=None, **options):
    options = {"menus": ("solver", "steps"), "limit": 2.0, "alt": "Paths & ends."} | options
    return trajectory_viewer_html(chosen or runs(), **options)


def test_every_run_travels_in_thousandths_of_the_limit():
    (figure,) = [f for f in Tags(page())["figure"] if "data-runs" in f]
    packed = json.loads(figure["data-runs"])
    assert list(packed) == ["0,0", "0,1", "1,0", "1,1"]
    assert packed["0,0"] == {
        "paths": "1000,0 500,-250|0,-500 -500,1000",
        "labels": ["t = 1", "t = 0"],
        "note": "one <step>",
    }
    assert packed["1,1"]["paths"] == "1000,0 500,-250 0,0|0,-500 -500,1000 0,0"


def test_the_first_run_is_drawn_without_a_script():
    tags = Tags(page(goal=torch.tensor([[1.0, 1.0], [0.0, -1.0]])))
    assert [line["points"] for line in tags["polyline"]] == ["1000,0 500,-250", "0,-500 -500,1000"]
    states, now = tags["path"]
    assert states["d"] == "M1000,0h0M500,-250h0M0,-500h0M-500,1000h0"
    assert now["d"] == "M500,-250h0M-500,1000h0"
    assert [(c["cx"], c["cy"]) for c in tags["circle"]] == [("500", "-500"), ("0", "500")]
    (svg,) = tags["svg"]
    assert (svg["role"], svg["aria-label"]) == ("img", "Paths & ends.")
    assert "one <step>" in tags.words


def test_menus_offer_the_options_in_order():
    tags = Tags(page())
    assert len(tags["select"]) == 2
    assert re.findall("<option.*?>(.*?)</option>", page()) == ["euler", "heun", "1", "2"]
    (slider,) = tags["input"]
    assert (slider["type"], slider["max"], slider["value"]) == ("range", "1", "1")
    assert slider["aria-valuetext"] == "t = 0"


def test_the_start_may_be_chosen():
    markup = page(start=("heun", "2"))
    assert re.findall("<option selected>(.*?)</option>", markup) == ["heun", "2"]
    tags = Tags(markup)
    assert tags["polyline"][0]["points"] == "1000,0 500,-250 0,0"
    assert "two" in tags.words
    with pytest.raises(ValueError, match="start must be one of the keys of runs"):
        page(start=("heun", "3"))


def test_density_is_a_picture_with_rows_downwards():
    tags = Tags(page(density=lambda x: -2 * (x - torch.tensor([1.0, -1.0])).square().sum(-1)))
    (image,) = tags["image"]
    code = image["href"].partition(",")[2]
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(code))).convert("RGBA"))
    row, column = np.unravel_index(pixels[..., 3].argmax(), (96, 96))
    assert (row, column) == (pytest.approx(71, abs=1), pytest.approx(71, abs=1))
    assert pixels[0, 0, 3] == 0
    assert "#" + bytes(pixels[row, column, :3]).hex() == PALETTE[5]


def test_points_that_fly_off_or_are_not_finite_stay_numbers():
    wild = torch.tensor([[[1e9, 0.0]], [[float("nan"), -float("inf")]]])
    (figure,) = Tags(page({("a",): Run(wild, "ab")}, menus=("solver",)))["figure"]
    assert json.loads(figure["data-runs"])["0"]["paths"] == "9999,0 0,9999"


def test_same_input_gives_the_same_page_without_ids():
    assert page(caption="For $t$.") == page(caption="For $t$.")
    assert " id=" not in page()
    assert "http" not in page()
    assert r"For \(t\)." in page(caption="For $t$.")


def test_text_cannot_break_out():
    evil = "</script><script>alert(1)</script>"
    markup = page({(evil,): Run(STATES, [evil, '"'], evil)}, menus=(evil,))
    assert markup.count("<script") == 1


def test_a_hundred_runs_are_small():
    states = torch.randn(17, 24, 2, generator=torch.Generator().manual_seed(0))
    many = {(str(i),): Run(states, range(17)) for i in range(100)}
    assert len(page(many, menus=("run",))) < 500_000


def test_runs_must_be_complete_and_alike():
    some = runs()
    del some["heun", "1"]
    with pytest.raises(ValueError, match=r"missing are \[\('heun', '1'\)\]"):
        page(some)
    with pytest.raises(ValueError, match="one option from each of the menus"):
        page(menus=("solver",))
    with pytest.raises(ValueError, match="runs must hold every combination, each with the same"):
        page({("a",): Run(STATES, "ab"), ("b",): Run(STATES[:, :1], "ab")}, menus=("x",))


def test_states_and_labels_must_fit():
    with pytest.raises(ValueError, match=r"states must have shape \(S\+1, B, 2\); got \(2, 2\)"):
        page({("a",): Run(STATES[0], "ab")}, menus=("x",))
    with pytest.raises(ValueError, match="got 3 for 2 states"):
        page({("a",): Run(STATES, "abc")}, menus=("x",))


def test_alt_is_required():
    with pytest.raises(ValueError, match="alt must say in words"):
        page(alt=" ")


def test_viewer_displays(monkeypatch):
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython.display, "display", outputs.append)
    trajectory_viewer(runs(), menus=("solver", "steps"), limit=2.0, alt="Paths.", width=99)
    assert repr(outputs[0]) == "[figure] Paths."
    assert 'width="99"' in outputs[0]._repr_html_()
