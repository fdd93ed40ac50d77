"""The public names of the package."""

import moteur.runtime


def test_the_public_names_are_these() -> None:
    assert moteur.runtime.__all__ == ["InferenceSession", "Kernel", "Parts", "Times", "fuse_for_inference"]
    assert all(hasattr(moteur.runtime, name) for name in moteur.runtime.__all__)
