"""Pretrained weights that ship with the package, and what is known of each.

`manifest.json` says how each file was made (recipe, commit, seed, steps), how it is built and how
good it was found to be. Files are safetensors: nothing is unpickled.
"""

from course_lib.pretrained.store import (
    available,
    load_pretrained,
    pretrained_info,
    save_pretrained,
)

__all__ = ["available", "load_pretrained", "pretrained_info", "save_pretrained"]
