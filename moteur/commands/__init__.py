"""The `moteur` command: look at sets and checkpoints, and prepare data, from a shell.

Importing this package loads neither torch nor any other part of the library; each subcommand loads what it needs.
"""

from moteur.commands.app import main

__all__ = ["main"]
