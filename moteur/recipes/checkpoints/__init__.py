"""Load, save, share and export the weights of a model."""
