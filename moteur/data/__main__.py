"""`python -m moteur.data` computes statistics."""

from moteur.data.compute_statistics import main

if __name__ == "__main__":
    main()
