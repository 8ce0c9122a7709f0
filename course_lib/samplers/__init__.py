"""Solvers: ways to walk the path from noise back to data, all with one signature."""

from course_lib.samplers.angles import angle_grid
from course_lib.samplers.api import SOLVERS, sample
from course_lib.samplers.bespoke import BespokeSolver, fit_bespoke
from course_lib.samplers.counting import CountEvaluations
from course_lib.samplers.dpm import ddim, dpm_solver_2, dpm_solver_3
from course_lib.samplers.grids import cosine_grid, karras_grid, lambda_grid, uniform_grid
from course_lib.samplers.likelihood import log_likelihood
from course_lib.samplers.multistep import deis, dpm_solver_pp_2m, dpm_solver_pp_3m, unipc
from course_lib.samplers.ode import dopri5, euler, heun, rk4
from course_lib.samplers.optimised_grid import optimise_grid
from course_lib.samplers.sde import (
    ancestral,
    euler_maruyama,
    predictor_corrector,
    sde_dpm_solver_pp_2m,
)

__all__ = [
    "SOLVERS",
    "BespokeSolver",
    "CountEvaluations",
    "ancestral",
    "angle_grid",
    "cosine_grid",
    "ddim",
    "deis",
    "dopri5",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_3m",
    "euler",
    "euler_maruyama",
    "fit_bespoke",
    "heun",
    "karras_grid",
    "lambda_grid",
    "log_likelihood",
    "optimise_grid",
    "predictor_corrector",
    "rk4",
    "sample",
    "sde_dpm_solver_pp_2m",
    "uniform_grid",
    "unipc",
]
