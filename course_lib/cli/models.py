"""From what a command line names to a model: a pretrained one, a file, or a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from course_lib.denoisers import Denoiser
from course_lib.pretrained import available, load_pretrained, pretrained_info
from course_lib.training.checkpoints import averaged_weights, newest
from course_lib.training.recipe import build_model, recipe_path

__all__ = ["find_denoiser", "find_model"]


def find_model(checkpoint: str) -> tuple[nn.Module, dict[str, Any]]:
    """A trained model, and what its samples are.

    Args:
        checkpoint: name of a pretrained model; a `.safetensors` file with its manifest beside it; a
            checkpoint, `step-*.ckpt`; or the folder of a training run, of which the weights are
            taken, or the newest checkpoint if it is newer or there are none.

    Returns:
        The model, on a GPU if there is one; and what was noted of its samples, for
        :meth:`SampleSpace.of <course_lib.cli.spaces.SampleSpace.of>`.

    Raises:
        ValueError: there is no such thing, it is damaged, or weights and model do not match.
    """
    path = Path(checkpoint)
    if checkpoint in available():
        model, images = _saved(checkpoint)
    elif path.is_dir():
        model, images = _run(path)
    elif path.suffix == ".safetensors" and path.is_file():
        model, images = _saved(path.stem, path.parent)
    elif path.suffix == ".ckpt" and path.is_file():
        model, images = _checkpointed(path)
    else:
        raise ValueError(
            f"checkpoint must be one of {', '.join(available())}; or a folder of a training run, "
            f"or a .safetensors file, that exists; got {checkpoint!r}"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), images


def find_denoiser(checkpoint: str) -> tuple[Denoiser, dict[str, Any]]:
    """The same for a model that draws samples.

    Raises:
        ValueError: it does not, or it cannot be loaded.
    """
    model, images = find_model(checkpoint)
    if not isinstance(model, Denoiser):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__}, which draws nothing")
    return model, images


def _saved(name: str, *folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    info = pretrained_info(name, *folder)
    model = _matching(f"{name}.safetensors", lambda: load_pretrained(name, *folder))
    # Older manifests say nothing of the images; their recipe does.
    return model, info.get("images") or yaml.safe_load(
        recipe_path(info["recipe"]).read_text(encoding="utf-8")
    )


def _run(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The weights of a run's folder, or its newest checkpoint."""
    names, latest = available(folder), newest(folder)
    if len(names) > 1:
        raise ValueError(f"checkpoint {folder} holds {', '.join(names)}: name one .safetensors")
    steps = int(latest.stem.removeprefix("step-")) if latest else -1
    if names and pretrained_info(names[0], folder)["steps"] >= steps:
        return _saved(names[0], folder)
    if latest is None:
        raise ValueError(f"checkpoint {folder} holds neither weights nor a checkpoint of a run")
    return _checkpointed(latest)


def _checkpointed(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    weights, recipe = averaged_weights(path)
    model = build_model(recipe["model"])
    _matching(path, lambda: model.load_state_dict(weights))
    return model, recipe["images"]


def _matching(name: Any, load: Any) -> Any:
    try:
        return load()
    except RuntimeError as error:
        raise ValueError(f"checkpoint {name} does not match its model: {error}") from error
