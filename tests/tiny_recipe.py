"""A recipe small enough to be trained by a test: class-conditional flow on the 8x8 digits."""

import re

TINY = """
model:
  class_path: course_lib.denoisers.NetDenoiser
  init_args:
    net:
      class_path: course_lib.nets.dit.DiT
      init_args: {image_size: 8, patch: 2, dim: 16, depth: 1, heads: 2, num_classes: 10}
    path: {class_path: course_lib.paths.Linear}
    predicts: velocity
data: digits
labels: true
fit:
  objective: {class_path: course_lib.objectives.ConditionDropout, init_args: {p: 0.3}}
  steps: 12
  batch_size: 16
  ema: 0.9
  save_every: 5
  progress: false
"""

# The same without labels.
PLAIN = re.sub(r"(?m)^(labels|  objective):.*\n", "", TINY)
