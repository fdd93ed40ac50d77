"""`python -m moteur.recipes.robots` computes statistics."""

from moteur.recipes.robots.collect import main

if __name__ == "__main__":
    main()
