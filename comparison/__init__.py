"""The models of the field on laws made of the same drawing, beside the exact score.

To be read in this order: `laws` (what is drawn from), `processes` (how noise is added),
`predictors` (what estimates it), `networks`, `objectives` and `training` (how one is
learned), `samplers` (the ways back), `measures` (how far from the law), `methods` and
`rows` (the rows of a table). `python -m comparison points` and `python -m comparison
pictures` run them, `python -m comparison.tables` makes the tables of docs/comparison.md.

A row of a process, a level and the index t are one thing. Equation numbers are those of
R. Cerizza, G. Savazzi, T. Barbera, "Diffusion Models" (2023).
"""
