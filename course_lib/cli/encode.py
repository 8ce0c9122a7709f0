"""`course-lib encode`: latents of images, made once, for models that are trained on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from course_lib.cli.autoencoders import Autoencoder, find_autoencoder
from course_lib.cli.parsing import new_parser
from course_lib.data.latents import RECORD, write_latents

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["classes_of", "find_images", "parser", "read_image", "run"]

DESCRIPTION = """Encode a folder of images with an autoencoder. Then `course-lib train
flow_diffusion_latent --data latents` trains on the latents.

  course-lib encode --images photos --autoencoder stable-diffusion/vae --output latents

The autoencoder is a folder with an AutoencoderKL of diffusers (pip install 'course-lib[latents]'),
or with a pipeline that has one. Images are cut to their central square and scaled. Where all of
them lie in sub-folders, each of these is a class."""

SUFFIXES = (".png", ".jpg", ".jpeg")
SHARD = 1024  # latents in a file


def parser(arguments: Sequence[str]) -> ArgumentParser:
    """Which images, by what, and where to."""
    new = new_parser(
        DESCRIPTION, usage="course-lib encode --images DIR --autoencoder DIR --output DIR [options]"
    )
    add = new.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder of PNG and JPEG files")
    add("--autoencoder", required=True, metavar="DIR", help="folder of the autoencoder")
    add("--output", type=Path, required=True, metavar="DIR", help="new folder for the latents")
    add("--size", type=int, default=512, help="side to which images are scaled, in pixels")
    add("--batch-size", type=int, default=8, help="images at a time")
    add("--device", help="cpu or cuda; a GPU if there is one, when left out")
    add("--seed", type=int, default=0, help="decides the draws from the latents' distribution")
    return new


def run(config: Namespace) -> int:
    """Encode and write.

    Raises:
        ValueError: there are no images, one of them is damaged, the output exists, or an option is
            out of range.
    """
    for name in ("size", "batch_size"):
        if config[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {config[name]}")
    if config.output.exists():
        raise ValueError(f"{config.output} exists: name a new folder with --output")
    files = find_images(config.images)
    names = classes_of(files, config.images)
    coder = find_autoencoder(config.autoencoder, config.device)
    coder.batch, shape = config.batch_size, coder.latent_shape(config.size)
    # Whole or not at all: the folder gets its name when all is in it.
    folder = config.output.with_name(config.output.name + ".part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(folder, files, names, coder, config)
    record = {
        "images": str(config.images.resolve()), "number": len(files), "shape": shape,
        "classes": sorted(set(names)), "size": config.size, "seed": config.seed,
        "autoencoder": _lasting(config.autoencoder),
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    folder.rename(config.output)
    form = "x".join(map(str, shape))
    in_classes = f" in {len(record['classes'])} classes" if names else ""
    print(f"{config.output}: {len(files)} latents, {form}{in_classes}")
    return 0


def _write(
    folder: Path, files: list[Path], names: list[str], coder: Autoencoder, config: Namespace
) -> None:
    """Write the latents, a file for each thousand."""
    generator, numbers = torch.Generator().manual_seed(config.seed), sorted(set(names))
    with tqdm(total=len(files), unit="image", disable=None) as bar:
        for number, start in enumerate(range(0, len(files), SHARD)):
            rows, latents = slice(start, start + SHARD), []
            for batch in _batches(files[rows], config.batch_size):
                images = [read_image(path, config.size, coder.channels) for path in batch]
                latents.append(coder.encode(torch.stack(images), generator))
                bar.update(len(batch))
            labels = torch.tensor([numbers.index(name) for name in names[rows]]) if names else None
            write_latents(folder, number, torch.cat(latents), labels)


def _batches(files: list[Path], size: int) -> Iterator[list[Path]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def _lasting(autoencoder: str) -> str:
    """The name of an autoencoder; of a folder, so that it holds from elsewhere."""
    return str(Path(autoencoder).resolve()) if Path(autoencoder).exists() else autoencoder


def find_images(folder: Path) -> list[Path]:
    """The PNG and JPEG files in a folder and its sub-folders, in order.

    Raises:
        ValueError: there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: --images names a folder of images")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return files


def classes_of(files: list[Path], folder: Path) -> list[str]:
    """For each file the sub-folder that it lies in; none if one lies in the folder itself."""
    places = [path.relative_to(folder).parts for path in files]
    return [parts[0] for parts in places] if all(len(parts) > 1 for parts in places) else []


def read_image(path: Path, size: int, channels: int) -> Tensor:
    """The central square of an image file, scaled.

    Args:
        path: the file.
        size: side in pixels.
        channels: 1 for grey, 3 for colour.

    Returns:
        Shape (channels, size, size), in [-1, 1].

    Raises:
        ValueError: the file is damaged.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as found:
            upright = ImageOps.exif_transpose(found).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError) as error:  # SyntaxError: a broken PNG
        raise ValueError(f"image {path} cannot be read: {error}") from error
    square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(square)).float().reshape(size, size, channels)
    return pixels.permute(2, 0, 1) / 127.5 - 1
