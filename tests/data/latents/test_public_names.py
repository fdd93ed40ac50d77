"""What the package promises."""

from moteur.recipes import latents


def test_the_public_names_are_these() -> None:
    assert latents.__all__ == [
        "LatentCache",
        "LatentCollator",
        "LatentDataset",
        "Shard",
        "latent_inputs",
        "latent_targets",
        "tokenizer_alone",
        "tokenizer_digest",
        "write_latents",
    ]
    assert all(hasattr(latents, name) for name in latents.__all__)
