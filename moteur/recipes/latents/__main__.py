"""`python -m moteur.recipes.latents` writes latents."""

from moteur.recipes.latents.write import main

if __name__ == "__main__":
    main()
