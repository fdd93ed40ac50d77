"""`python -m moteur.data.latents` writes latents."""

from moteur.data.latents.write import main

if __name__ == "__main__":
    main()
