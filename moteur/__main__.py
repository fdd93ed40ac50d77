"""`python -m moteur`: the `moteur` command."""

from moteur.commands import main

if __name__ == "__main__":
    main()
