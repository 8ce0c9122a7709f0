"""What one builds with a denoiser: text to image, editing, 3-D, composition.

Every function here takes any :class:`~course_lib.denoisers.Denoiser`.
"""
