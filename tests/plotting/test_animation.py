"""The frame viewer's HTML: frames, labels, controls."""

import base64
import json
from html.parser import HTMLParser
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from course_lib.plotting import image_frames, lines, viewer
from course_lib.plotting.animation import viewer_html


class Tags(HTMLParser):
    """Attributes of the start tags, by name."""

    def __init__(self, markup):
        super().__init__()
        self.tags = {}
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))

    def __getitem__(self, name):
        return self.tags[name]


def digits(frames=3, count=2, channels=1):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(frames, count, channels, 8, 8, generator=generator) * 2 - 1


def curves(count=2):
    return [lines([0.0, 1.0], {"": [0.0, k]}, xlabel="x", ylabel="y") for k in range(count)]


def decoded(image):
    """The frames that an <img> carries."""
    pictures = [Image.open(BytesIO(base64.b64decode(c))) for c in image["data-frames"].split(" ")]
    return np.stack([np.asarray(picture.convert("RGBA")) for picture in pictures])


def test_pixels_arrive_unchanged():
    frames = image_frames(digits())
    (image,) = Tags(viewer_html(frames, labels="abc", alt="Noise."))["img"]
    assert (decoded(image) == frames).all()
    assert image["class"].split() == ["course-pixels", "dark-light"]
    assert image["src"].partition(",")[2] == image["data-frames"].split(" ")[0]


def test_colour_and_plain_grey_pixels_arrive_unchanged():
    colour = image_frames(digits(channels=3))
    (image,) = Tags(viewer_html(colour, labels="abc", alt="Noise."))["img"]
    assert (decoded(image) == colour).all()
    grey = colour[..., 0]
    (image,) = Tags(viewer_html(grey, labels="abc", alt="Noise."))["img"]
    assert (decoded(image)[..., 0] == grey).all()


@pytest.mark.parametrize(
    ("count", "width", "expected"),
    [(2, None, (288, 144)), (10, None, (630, 63)), (80, None, (720, 9)), (2, 90, (90, 45))],
)
def test_pixels_are_enlarged_by_whole_numbers(count, width, expected):
    frames = image_frames(digits(count=count))
    (image,) = Tags(viewer_html(frames, labels="abc", alt="Noise.", width=width))["img"]
    assert (int(image["width"]), int(image["height"])) == expected


def test_figures_come_light_and_dark():
    light, dark = Tags(viewer_html(curves(), labels=["a", "b"], alt="Lines."))["img"]
    assert light["class"].split() == ["course-light", "dark-light"]
    assert dark["class"].split() == ["course-dark", "dark-light"]
    assert dark["style"] == "display:none"
    assert decoded(light).shape == decoded(dark).shape == (2, 510, 960, 4)
    assert (decoded(light)[0] != decoded(light)[1]).any()
    assert (decoded(light) != decoded(dark)).any()
    assert (light["width"], light["height"]) == ("640", "340")


def test_controls():
    labels = ["t = 0.00", 't < "1"', "t = 1"]
    tags = Tags(viewer_html(image_frames(digits()), labels=labels, alt="Noise & <digits>"))
    (figure,) = tags["figure"]
    assert figure["class"].split() == ["course-figure", "course-viewer"]
    assert json.loads(figure["data-labels"]) == labels
    (slider,) = tags["input"]
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == (
        "range", "0", "2", "0",
    )  # fmt: skip
    assert slider["aria-label"] == "Frame"
    assert slider["aria-valuetext"] == "t = 0.00"
    assert [button["type"] for button in tags["button"]] == ["button"]
    assert tags["img"][0]["alt"] == "Noise & <digits>"


def test_labels_cannot_break_out():
    labels = ["</script><script>alert(1)</script>", "'\"", "&amp;"]
    markup = viewer_html(image_frames(digits()), labels=labels, alt="Noise.")
    assert markup.count("<script") == 1
    assert json.loads(Tags(markup)["figure"][0]["data-labels"]) == labels


def test_numbers_serve_as_labels():
    markup = viewer_html(image_frames(digits()), labels=[0.5, 1, 2], alt="Noise.")
    assert json.loads(Tags(markup)["figure"][0]["data-labels"]) == ["0.5", "1", "2"]


def test_same_input_gives_the_same_page_without_ids():
    pages = [
        viewer_html(image_frames(digits()), labels="abc", alt="Noise.", caption="For $t$.")
        for _ in range(2)
    ]
    assert pages[0] == pages[1]
    assert " id=" not in pages[0]
    assert "http" not in pages[0]
    assert r"For \(t\)." in pages[0]


def test_thirty_frames_of_digits_are_small():
    frames = image_frames(digits(frames=30, count=10))  # noise: the worst to compress
    assert len(viewer_html(frames, labels=range(30), alt="Noise.")) < 100_000


def test_dragging_is_offered_only_where_it_is_asked_for():
    frames = image_frames(digits())
    still, turning = (
        viewer_html(frames, labels="abc", alt="Noise.", drag=drag) for drag in (False, True)
    )
    assert "data-drag" not in Tags(still)["figure"][0]
    assert "data-drag" in Tags(turning)["figure"][0]
    assert turning.replace(" data-drag>", ">") == still
    for event in ("pointerdown", "pointermove", "lostpointercapture"):
        assert event in turning
    assert "touch-action:pan-y" in turning  # a finger can still scroll the page


def test_labels_must_match_frames():
    with pytest.raises(ValueError, match="2 labels and 3 frames"):
        viewer(image_frames(digits()), labels=["a", "b"], alt="Noise.")
    with pytest.raises(ValueError, match="at least one frame"):
        viewer([], labels=[], alt="Nothing.")


def test_alt_is_required():
    with pytest.raises(ValueError, match="alt must say in words"):
        viewer(image_frames(digits()), labels="abc", alt=" ")


@pytest.mark.parametrize(
    "frames", [np.zeros((3, 8, 8)), np.zeros((3, 8), np.uint8), np.zeros((3, 8, 8, 2), np.uint8)]
)
def test_pixels_must_be_bytes(frames):
    with pytest.raises(ValueError, match="frames must be figures, or uint8 pixels"):
        viewer(frames, labels="abc", alt="Noise.")


def test_viewer_displays_and_closes(monkeypatch):
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython.display, "display", outputs.append)
    frames = image_frames(digits())
    viewer(frames, labels="abc", alt="Noise.", interval=99)
    assert repr(outputs[0]) == "[figure] Noise."
    assert 'data-interval="99"' in outputs[0]._repr_html_()
    fig = plt.figure()
    viewer([fig], labels=["a"], alt="Empty.")
    assert len(outputs) == 2
    assert not plt.fignum_exists(fig.number)
