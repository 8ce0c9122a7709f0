"""The HTML that a figure becomes, and what a notebook receives."""

import base64
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from course_lib.plotting import show
from course_lib.plotting.display import figure_html


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of the caption."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.caption, self._inside = [], "", False
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "figcaption"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.caption += data if self._inside else ""

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def curve():
    fig = Figure(figsize=(6.4, 3.4))
    fig.add_artist(Line2D([0, 1], [0, 1]))
    fig.text(0.5, 0.5, "rising", color="black")
    return fig


@pytest.fixture
def shown(monkeypatch):
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython.display, "display", outputs.append)
    return outputs


@pytest.mark.parametrize("alt", ["", "  \n", None])
def test_alt_is_required(alt):
    with pytest.raises(ValueError, match="alt must say in words"):
        show(curve(), alt=alt)
    with pytest.raises(TypeError, match="alt"):
        show(curve())


def test_two_images_one_of_them_hidden():
    light, dark = Tags(figure_html(curve(), alt="It rises.")).named("img")
    assert light["class"].split() == ["course-light", "dark-light"]
    assert dark["class"].split() == ["course-dark", "dark-light"]
    assert light["alt"] == dark["alt"] == "It rises."
    assert "style" not in light
    assert dark["style"] == "display:none"
    assert light["src"] != dark["src"]
    for image in (light, dark):
        head, _, code = image["src"].partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(BytesIO(base64.b64decode(code))).size == (1280, 680)


def test_every_host_turns_dark():
    markup = figure_html(curve(), alt="It rises.")
    for host in (
        'html[data-theme="dark"]', 'html[theme="dark"]',
        'body[data-jp-theme-light="false"]', "body.vscode-dark",
    ):  # fmt: skip
        assert host in markup


def test_alt_is_escaped():
    alt = 'a "quoted" <b>bold</b> & more'
    markup = figure_html(curve(), alt=alt)
    assert "<b>" not in markup
    assert Tags(markup).named("img")[0]["alt"] == alt


def test_caption_is_escaped_and_keeps_tex():
    markup = figure_html(curve(), alt="It rises.", caption="For $a < b_t$ & <i>all</i> $x$.")
    assert "<i>" not in markup
    parsed = Tags(markup)
    assert parsed.caption == r"For \(a < b_t\) & <i>all</i> \(x\)."
    assert parsed.named("figcaption") == [{"class": "mathjax_process"}]
    assert not Tags(figure_html(curve(), alt="It rises.")).named("figcaption")


@pytest.mark.parametrize(("width", "size"), [(None, ("640", "340")), (320, ("320", "170"))])
def test_width_on_the_page(width, size):
    for image in Tags(figure_html(curve(), alt="It rises.", width=width)).named("img"):
        assert (image["width"], image["height"]) == size


def test_nothing_from_outside_and_the_same_each_time():
    markup = figure_html(curve(), alt="It rises.")
    assert markup == figure_html(curve(), alt="It rises.")
    assert "http" not in markup
    assert "<script" not in markup


def test_show_hands_over_html_and_words(shown):
    show(curve(), alt=" It rises. ", caption="A line.")
    (output,) = shown
    assert output._repr_html_() == figure_html(curve(), alt="It rises.", caption="A line.")
    assert repr(output) == "[figure] It rises."


def test_show_closes_a_pyplot_figure(shown):
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    show(fig, alt="It rises.")
    assert not plt.fignum_exists(fig.number)


def test_plain_python_prints_the_words_and_needs_no_pyplot():
    # A fresh interpreter: no notebook, and no pyplot that another test may have imported.
    program = (
        "import sys, course_lib.plotting as p\n"
        "assert 'matplotlib' not in sys.modules and 'IPython' not in sys.modules\n"
        "p.show(p.bars({'a': 1.0}, ylabel='y'), alt='One bar.')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout == "[figure] One bar.\n"
