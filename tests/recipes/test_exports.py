import moteur.recipes


def test_the_public_names_are_these() -> None:
    assert moteur.recipes.__all__ == [
        "ExpertSize",
        "Imagined",
        "Inputs",
        "InternVLAA1",
        "InternVLAA1Config",
        "InternVLVision",
        "Joint",
        "Losses",
        "Observation",
        "Processor",
        "Qwen3VLVision",
        "Targets",
        "TimeSampling",
        "TokenIds",
        "moved",
        "preset",
        "use_released_precision",
    ]
    assert all(hasattr(moteur.recipes, name) for name in moteur.recipes.__all__)
