"""The public names of the block."""

import moteur.mot


def test_the_public_names_are_these() -> None:
    assert moteur.mot.__all__ == ["AttentionFn", "Expert", "KVCache", "MoT", "Rotary", "rotary_angles"]
    assert all(hasattr(moteur.mot, name) for name in moteur.mot.__all__)
