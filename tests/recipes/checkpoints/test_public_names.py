import moteur.recipes.checkpoints


def test_the_public_names_are_these() -> None:
    assert moteur.recipes.checkpoints.__all__ == [
        "LoadingReport",
        "Misfit",
        "ReleasedConfig",
        "config_from_json",
        "config_to_json",
        "export_released",
        "read_released_config",
    ]
    assert all(hasattr(moteur.recipes.checkpoints, name) for name in moteur.recipes.checkpoints.__all__)
