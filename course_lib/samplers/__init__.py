"""Solvers: ways to walk the path from noise back to data, all with one signature."""

from course_lib.samplers.api import SOLVERS, sample
from course_lib.samplers.dpm import ddim, dpm_solver_pp_2m
from course_lib.samplers.grids import cosine_grid, karras_grid, lambda_grid, uniform_grid
from course_lib.samplers.ode import euler, heun
from course_lib.samplers.sde import ancestral

__all__ = [
    "SOLVERS",
    "ancestral",
    "cosine_grid",
    "ddim",
    "dpm_solver_pp_2m",
    "euler",
    "heun",
    "karras_grid",
    "lambda_grid",
    "sample",
    "uniform_grid",
]
