"""What one builds with a denoiser: text to image, editing, 3-D, composition.

Every function here takes any :class:`~course_lib.denoisers.Denoiser`.
"""

from course_lib.applications.clip_guidance import clip_log_prob
from course_lib.applications.composition import (
    Asked,
    MixtureOfExperts,
    ProductOfExperts,
    all_of,
    exact_product,
)
from course_lib.applications.editing import blend, invert, sdedit, slerp
from course_lib.applications.exact import conditional, posterior
from course_lib.applications.inpainting import (
    filtered,
    paste,
    renoise,
    repaint,
    repaint_schedule,
)
from course_lib.applications.inverse import (
    ReconstructionGuidance,
    blur,
    downsample,
    mask_operator,
    matrix_operator,
    transpose,
)
from course_lib.applications.mcmc import annealed_langevin, langevin, line_integral
from course_lib.applications.mesh import (
    Mesh,
    fill_diagonals,
    largest_component,
    mesh_volume,
    voxel_mesh,
    with_base,
    write_obj,
    write_stl,
)
from course_lib.applications.particles import (
    effective_sample_size,
    feynman_kac,
    systematic_resampling,
)
from course_lib.applications.prompt_widget import draw_prompt, prompt_widget
from course_lib.applications.rendering import optical_depth, render, shade
from course_lib.applications.sds import (
    Distillation,
    ParticleDenoiser,
    annealed_times,
    data_weight,
    noise_weight,
    sds,
    vsd,
)
from course_lib.applications.style_transfer import (
    RandomFeatures,
    VGGFeatures,
    content_loss,
    gram,
    style_loss,
    total_variation,
    transfer,
    vgg_features,
)
from course_lib.applications.text import (
    CaptionLoss,
    ConditionedDenoiser,
    Conditioner,
    retrieve,
    zero_shot,
)
from course_lib.applications.word_maps import WordMaps, word_maps

__all__ = [
    "Asked",
    "CaptionLoss",
    "ConditionedDenoiser",
    "Conditioner",
    "Distillation",
    "Mesh",
    "MixtureOfExperts",
    "ParticleDenoiser",
    "ProductOfExperts",
    "RandomFeatures",
    "ReconstructionGuidance",
    "VGGFeatures",
    "WordMaps",
    "all_of",
    "annealed_langevin",
    "annealed_times",
    "blend",
    "blur",
    "clip_log_prob",
    "conditional",
    "content_loss",
    "data_weight",
    "downsample",
    "draw_prompt",
    "effective_sample_size",
    "exact_product",
    "feynman_kac",
    "fill_diagonals",
    "filtered",
    "gram",
    "invert",
    "langevin",
    "largest_component",
    "line_integral",
    "mask_operator",
    "matrix_operator",
    "mesh_volume",
    "noise_weight",
    "optical_depth",
    "paste",
    "posterior",
    "prompt_widget",
    "render",
    "renoise",
    "repaint",
    "repaint_schedule",
    "retrieve",
    "sdedit",
    "sds",
    "shade",
    "slerp",
    "style_loss",
    "systematic_resampling",
    "total_variation",
    "transfer",
    "transpose",
    "vgg_features",
    "voxel_mesh",
    "vsd",
    "with_base",
    "word_maps",
    "write_obj",
    "write_stl",
    "zero_shot",
]
