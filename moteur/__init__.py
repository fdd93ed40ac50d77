"""Building blocks for vision-language-action models, and what a recipe made of them needs to act.

Blocks: `moteur.masks`, `moteur.mot`, `moteur.tokenizers`, `moteur.flowmatch`, `moteur.sampling`. Robots and their data:
`moteur.data`. InternVLA-A1: `moteur.recipes`. Policies and sessions: `moteur.runtime`. Importing this package alone
loads nothing; `moteur.__version__` asks the installed package.
"""

__version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415 - slow to import, and seldom asked for

    return version(__name__)
