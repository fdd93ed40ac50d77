"""Building blocks for vision-language-action models, and what a recipe made of them needs to act.

Blocks: `moteur.masks`, `moteur.mot`, `moteur.tokenizers`, `moteur.flowmatch`, `moteur.sampling`. Robots and their data:
`moteur.data`. InternVLA-A1: `moteur.recipes`. Policies and sessions: `moteur.runtime`. Importing this package alone
loads nothing.
"""
