#!/usr/bin/env bash
# Prove that the recipe computes the same under transformers 4.57.1 and under the newest 5, and that everything which
# needs no transformers works without it.
#
# Builds three environments under .venvs/ (4 GB together, ignored by git): transformers-4.57.1, transformers-newest
# and core (no extra at all). Versions follow constraints.txt, but for what transformers itself decides. In the first two
# the same program records what is computed from the same weights and inputs, and the recorded reference numbers
# are tested; then the records are compared. What transformers' own image processor needs lies in a folder apart:
# moteur needs neither, the compiled part of torchvision does not fit a CPU-only torch, and where transformers can see
# it, it tries to use it. Left out are tests that build transformers' own models through what only one version offers.
#
# Usage: scripts/transformers_compat.sh      (PYTHON=python3.11)
# Writes benchmarks/results/transformers_compat.json.
set -euo pipefail
cd "$(dirname "$0")/.."

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PIP_DISABLE_PIP_VERSION_CHECK=1
folder=.venvs
mkdir -p "$folder"
grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > "$folder/constraints.txt"
rm -f "$folder"/*/outputs.safetensors "$folder"/*/processors.json "$folder"/*/tests.xml

# install NAME REQUIREMENT...: an environment with moteur, the tests' own needs, and what is asked for
install() {
    local python="$folder/$1/bin/python"
    test -x "$python" || "${PYTHON:-python3.11}" -m venv "$folder/$1"
    "$python" -m pip install --quiet --upgrade -c "$folder/constraints.txt" \
        "${@:2}" beartype hypothesis pytest pytest-socket scipy
}

# tests NAME PATH...: run tests there and keep the count, for the comparison to judge
tests() {
    "$folder/$1/bin/python" -m pytest -q -p no:cacheprovider --junitxml="$folder/$1/tests.xml" "${@:2}" || true
}

install core -e .
install transformers-4.57.1 -e '.[vlm]' transformers==4.57.1
install transformers-newest -e '.[vlm]' 'transformers>=5,<6'
"$folder/core/bin/python" -m pip install --quiet --upgrade --no-deps -c "$folder/constraints.txt" \
    --target "$folder/image-processor" torchvision==0.28.0 pillow

tests core tests/house/test_without_transformers.py tests/masks tests/mot tests/tokenizers tests/flowmatch \
    tests/sampling --ignore tests/mot/test_transformers.py --ignore tests/mot/test_rotary.py
for name in transformers-4.57.1 transformers-newest; do
    python="$folder/$name/bin/python"
    PYTHONPATH=tests "$python" scripts/transformers_compat.py record --out "$folder/$name/outputs.safetensors"
    PYTHONPATH="$folder/image-processor" "$python" scripts/transformers_compat.py processors --out "$folder/$name/processors.json"
    tests "$name" tests/recipes/test_golden.py tests/recipes/test_model.py tests/recipes/test_inputs.py \
        tests/recipes/test_processing.py tests/recipes/test_accounting.py tests/recipes/checkpoints \
        --ignore-glob '*/checkpoints/test_*backbone*.py'
done
"$folder/transformers-newest/bin/python" scripts/transformers_compat.py compare --folder "$folder" \
    --out benchmarks/results/transformers_compat.json
