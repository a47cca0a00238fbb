"""Diffusion models on data made of one drawing, beside the exact denoiser.

To be read in this order: `levels` (how noise is added), `denoisers` (what estimates x_0),
`samplers` (one step), `measures`, `dataset` with `points` and `pictures` (what is drawn
from), `networks`, `objectives` and `training` (how a denoiser is learned), `rows` (the
table), `figures`, `tables`. A new method is a generator in `samplers` and a `Method` in
`points` or `pictures`. All is in one coordinate, y = x_0 + sigma eps. Numbers in brackets
are those of R. Cerizza, G. Savazzi, T. Barbera, "Diffusion Models" (2023), the survey.
"""
