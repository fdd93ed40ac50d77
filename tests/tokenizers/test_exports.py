import subprocess
import sys

import moteur.tokenizers


def test_the_public_names_are_these() -> None:
    assert moteur.tokenizers.__all__ == [
        "CosmosDecoder",
        "CosmosEncoder",
        "ForesightHead",
        "Grid",
        "LatentHistory",
        "check_images",
        "foresight_loss",
        "haar_images",
        "haar_patches",
        "load_weights",
        "save_weights",
    ]
    assert all(hasattr(moteur.tokenizers, name) for name in moteur.tokenizers.__all__)


def test_a_fresh_process_imports_it_without_the_recipes_the_hub_or_its_siblings() -> None:
    program = (
        "import sys, moteur.tokenizers\n"
        "heavy = {'transformers', 'huggingface_hub', 'accelerate', 'moteur.masks', 'moteur.mot', 'moteur.flowmatch',"
        " 'moteur.sampling', 'moteur.recipes'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 -- our own interpreter and program
