"""Reading and writing of pretrained weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.training.atomic import write_atomic
from course_lib.training.recipe import build_model

__all__ = ["available", "load_pretrained", "pretrained_info", "save_pretrained"]

FOLDER = Path(__file__).parent


def available(folder: Path | str = FOLDER) -> list[str]:
    """Names of the pretrained models of a folder; by default, those that ship."""
    return sorted(_manifest(Path(folder)))


def pretrained_info(name: str, folder: Path | str = FOLDER) -> dict[str, Any]:
    """What is known of a pretrained model.

    Args:
        name: one of `available()`.
        folder: folder of the manifest.

    Returns:
        file, sha256, model (class and arguments), recipe, commit, seed, steps and metrics.

    Raises:
        ValueError: there is no model of that name.
    """
    manifest = _manifest(Path(folder))
    if name not in manifest:
        raise ValueError(
            f"name must be one of {', '.join(sorted(manifest)) or '(none)'}; got {name!r}"
        )
    return manifest[name]


def load_pretrained(name: str, folder: Path | str = FOLDER) -> nn.Module:
    """Build a pretrained model and load its weights.

    Args:
        name: one of `available()`.
        folder: folder of manifest and weights.

    Returns:
        The module, in float32 and evaluation mode, on the CPU.

    Raises:
        ValueError: there is no model of that name, or its file is damaged (SHA-256).
        FileNotFoundError: the file of weights is missing.
    """
    from safetensors.torch import load

    info = pretrained_info(name, folder)
    path = Path(folder) / info["file"]
    if not path.is_file():
        raise FileNotFoundError(
            f"weights of {name!r} are missing: {path}. "
            f"Install the package anew, or make them: course-lib train {info.get('recipe', name)}"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != info["sha256"]:
        raise ValueError(
            f"weights of {name!r} are damaged: {path} has SHA-256 {digest}, the manifest says "
            f"{info['sha256']}. Install the package anew"
        )
    model = build_model(info["model"])
    model.load_state_dict(load(content), strict=True)
    return model.eval()


def save_pretrained(model: nn.Module, name: str, info: dict[str, Any], folder: Path | str) -> Path:
    """Write weights as float16 safetensors, and their entry in the manifest.

    Args:
        model: the module. Parameters are stored in half precision; buffers as they are.
        name: name of the model; the file is `name.safetensors`.
        info: the rest of the entry: model, recipe, commit, seed, steps, metrics.
        folder: folder of manifest and weights; made where it is missing.

    Returns:
        The file of weights.

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    path = folder / f"{name}.safetensors"
    content = save(_half(model))
    write_atomic(path, content)
    entry = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), **info}
    manifest = dict(sorted({**_manifest(folder), name: entry}.items()))
    write_atomic(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    return path


def _half(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {
        key: (value.to(torch.float16) if key in parameters else value).contiguous()
        for key, value in model.state_dict().items()
    }


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.is_file() else {}
