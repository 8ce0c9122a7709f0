"""Draw the picture of the README: digits that the pretrained model makes out of noise.

Usage: `python tools/readme_picture.py`
"""

from pathlib import Path

from course_lib import sample
from course_lib.plotting import image_grid
from course_lib.pretrained import load_pretrained

TARGET = Path(__file__).parents[1] / "book/_static/readme.png"
STATES = [0, 14, 18, 22, 26, 32, 40]


def main() -> None:
    """Sample, choose some states of the way, and write the picture."""
    shape = (4, 1, 32, 32)
    states = sample(
        load_pretrained("mnist-ddpm"),
        shape,
        solver="ddim",
        steps=40,
        seed=7,
        return_trajectory=True,
    )
    images = states[STATES].transpose(0, 1).flatten(0, 1)
    titles = [f"t = {1 - i / 40:.2g}" for i in STATES]
    figure = image_grid(images, columns=len(STATES), titles=titles, size=1.0)
    figure.savefig(TARGET, dpi=120, facecolor="white", bbox_inches="tight")


if __name__ == "__main__":
    main()
