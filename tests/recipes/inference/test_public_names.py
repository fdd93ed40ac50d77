"""The public names of the package."""

import moteur.recipes.inference


def test_the_public_names_are_these() -> None:
    assert moteur.recipes.inference.__all__ == ["InferenceSession", "Kernel", "Parts", "Times", "fuse_for_inference"]
    assert all(hasattr(moteur.recipes.inference, name) for name in moteur.recipes.inference.__all__)
