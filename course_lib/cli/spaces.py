"""What the samples of a recipe's model are: images, points in the plane, or latents of images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_lib.data import TOYS, captions, latents, latents_info, tokenize, varied
from course_lib.plotting.images import tile
from course_lib.plotting.points import points_picture
from course_lib.training.recipe import CLASSES, NATIVE, image_shape, recipe_data

if TYPE_CHECKING:
    import numpy as np

    from course_lib.cli.autoencoders import Autoencoder

__all__ = ["SampleSpace"]

POINTS = {"train": 50_000, "test": 10_000}
SEEDS = {"train": 0, "test": 1}


@dataclass
class SampleSpace:
    """The data of a recipe as its model sees them, and the model's samples as people see them.

    Args:
        data: "digits" or "mnist"; a shape of `course_lib.data.TOYS`; or a folder of latents.
        image_size: side of images in pixels; that of the data set if left out.
        channels: 1, or 3 for grey images in three equal channels.
        labels: whether the model takes labels as condition.
        captions: how many captions each image has, which the model takes with the labels. The
            images are then varied in size, width and slant, so that there is something to tell.
        autoencoder: where the model lives in the latents of one, its name or folder. Images are
            encoded by it. A folder of latents names its own, if this is left out.
        shape: shape of the latents of a folder; with `classes`, read from the folder if left out.
        classes: their number of classes.

    Raises:
        ValueError: there are no such data, an option does not go with them, or labels are asked
            of data without classes.
    """

    data: str = "digits"
    image_size: int | None = None
    channels: int = 1
    labels: bool = False
    captions: int = 0
    autoencoder: str | None = None
    shape: tuple[int, ...] = ()
    classes: int = 0

    def __post_init__(self) -> None:
        if self.data in NATIVE:
            self.shape, self.classes = self._image_shape(), CLASSES
        elif self.image_size is not None or self.channels != 1:
            raise ValueError(f"image_size and channels must be left out for data {self.data}")
        elif self.data in TOYS:
            self._refuse_autoencoder()
            self.shape, self.classes = (2,), TOYS[self.data].classes
        elif not self.shape:
            self._read_folder()
        self.shape = tuple(self.shape)  # JSON makes a list of it
        if self.captions:
            self._check_captions()
        if self.labels and not self.classes:
            raise ValueError(f"labels must be false: data {self.data} have no classes")

    def _image_shape(self) -> tuple[int, ...]:
        shape = image_shape(self.data, self.image_size, self.channels)
        return shape if self.autoencoder is None else self.coder.latent_shape(shape[-1])

    def _check_captions(self) -> None:
        plain = self.data == "mnist" and self.channels == 1 and self.autoencoder is None
        if self.captions < 0 or not plain or not self.labels:
            raise ValueError(
                f"captions must be 0, or positive for data mnist with labels, one channel and no "
                f"autoencoder; got {self.captions} for data {self.data}"
            )

    def _refuse_autoencoder(self) -> None:
        if self.autoencoder is not None:
            raise ValueError(f"autoencoder must be left out for data {self.data}: no images")

    def _read_folder(self) -> None:
        if not Path(self.data).is_dir():
            raise ValueError(
                f"data must be one of {', '.join([*NATIVE, *TOYS])}, or a folder of latents; "
                f"got {self.data!r}"
            )
        self.shape, self.classes, named = latents_info(self.data)
        self.autoencoder = self.autoencoder or named

    @classmethod
    def of(cls, recipe: Any) -> SampleSpace:
        """That of a recipe, or of what was noted of one."""
        return cls(**{f.name: recipe[f.name] for f in fields(cls) if f.name in recipe})

    @property
    def note(self) -> dict[str, Any]:
        """What weights and checkpoints say of it, for `of`; plain, and enough without the data."""
        noted = asdict(self)
        known = ("shape", "classes") if self.data in (*NATIVE, *TOYS) else ()
        known = (*known, *(() if self.captions else ("captions",)))
        unneeded = (*known, *(("autoencoder",) if self.autoencoder is None else ()))
        return {name: value for name, value in noted.items() if name not in unneeded}

    @cached_property
    def coder(self) -> Autoencoder:
        """The autoencoder, loaded once.

        Raises:
            ValueError: there is none, or none is named.
        """
        from course_lib.cli.autoencoders import find_autoencoder

        if self.autoencoder is None:
            raise ValueError(
                f"autoencoder must be named (--autoencoder), to see the latents of {self.data}"
            )
        return find_autoencoder(self.autoencoder)

    @property
    def points(self) -> bool:
        """Whether samples are points in the plane, not images."""
        return self.data in TOYS

    def load(self, split: str) -> tuple[Tensor, Any]:
        """Images or points of a split, or the latents of a folder; and labels, where there are.

        Args:
            split: "train" or "test".

        Raises:
            ValueError: the data cannot be read.
        """
        if self.captions:
            images, labels = recipe_data(self.data, split)
            generator = torch.Generator().manual_seed(SEEDS[split])
            return varied(images, generator, size=self.shape[-1]), labels
        if self.data in NATIVE:
            return recipe_data(self.data, split, self.image_size, self.channels)
        if not self.points:
            return latents(self.data, split)
        toy = TOYS[self.data]
        x = toy.sample(POINTS[split], seed=SEEDS[split])
        return x, None if toy.labels is None else toy.labels(x)

    def examples(self, split: str) -> tuple[Tensor, Any]:
        """The same as the model sees it: images encoded, if there is an autoencoder.

        With captions the condition is labels (N,) and the numbers of their words, (N, K, length).
        """
        x, labels = self.load(split)
        if self.captions:
            generator = torch.Generator().manual_seed(SEEDS[split])
            ids, _ = tokenize(captions(x, labels, generator, each=self.captions))
            return x, (labels, ids.unflatten(0, (-1, self.captions)))
        if self.data in NATIVE and self.encoded:
            x = self.coder.encode(x, torch.Generator().manual_seed(SEEDS[split]))
        return x, labels

    @property
    def encoded(self) -> bool:
        """Whether samples are latents."""
        return self.data not in (*NATIVE, *TOYS) or self.autoencoder is not None

    def decode(self, samples: Tensor) -> Tensor:
        """Samples of the model as images (N, C, H, W) or points (N, 2).

        Raises:
            ValueError: they are latents, and there is no autoencoder; `prepare` says so earlier.
        """
        return self.coder.decode(samples) if self.encoded else samples

    def prepare(self) -> None:
        """Load what `decode` needs.

        Raises:
            ValueError: samples are latents, and there is no autoencoder.
        """
        if self.encoded:
            _ = self.coder

    def picture(self, seen: Tensor, labels: Tensor | None, columns: int, gap: int) -> np.ndarray:
        """One picture of images, side by side, or of points; uint8 RGBA, shape (H, W, 4).

        Args:
            seen: what `decode` returns.
            labels: classes of points, which colour them, or None.
            columns: images in a row.
            gap: pixels between images.
        """
        return points_picture(seen, labels) if self.points else tile(seen, columns, gap)
