"""The models of the field on data made of the same drawing, beside the exact score.

To be read in this order: `levels` (how noise is added), `denoisers` (what estimates x_0),
`samplers` (one step), `networks`, `objectives` and `training` (how a denoiser is
learned), `measures`, `dataset` with `points` and `pictures` (what is drawn from), `methods`
and `rows` (the table). `python -m comparison points` and `python -m comparison pictures`
run them; `python -m comparison.tables` makes the tables of docs/comparison.md.

Everything is in one coordinate, y = x_0 + sigma eps (`levels`). Equation numbers are those
of R. Cerizza, G. Savazzi, T. Barbera, "Diffusion Models" (2023).
"""
