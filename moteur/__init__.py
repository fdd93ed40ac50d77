"""Independent building blocks for vision-language-action models, and a recipe that assembles InternVLA-A1 from them.

Import the block you need: `moteur.masks`, `moteur.mot`, `moteur.tokenizers`, `moteur.flowmatch`, `moteur.sampling`,
or the assembled model from `moteur.recipes`. Importing this package alone loads nothing.
"""
