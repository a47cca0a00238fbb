"""The models of the field on data made of the same drawing, beside the exact score.

To be read in this order: `levels` (how noise is added), `denoisers` (what estimates x_0),
`samplers` (one step), `objectives`, `networks` and `training` (how a denoiser is learned),
`dataset` with `measures`, `points` and `pictures`, and `rows` (the table). All is in one
coordinate, y = x_0 + sigma eps. Equation numbers are those of R. Cerizza, G. Savazzi,
T. Barbera, "Diffusion Models" (2023).
"""
