import moteur.recipes.weights


def test_the_public_names_are_these() -> None:
    assert moteur.recipes.weights.__all__ == [
        "LoadingReport",
        "Misfit",
        "ReleasedConfig",
        "config_from_json",
        "config_to_json",
        "export_released",
        "read_released_config",
    ]
    assert all(hasattr(moteur.recipes.weights, name) for name in moteur.recipes.weights.__all__)
