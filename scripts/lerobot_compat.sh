#!/usr/bin/env bash
# Prove that LeRobot's own reader accepts what moteur writes, and that ours reads back what LeRobot read.
#
# LeRobot 0.4.4 asks for an older torch than the one tested here, so it lives in an environment of its own
# (.venvs/lerobot, about 3 GB, ignored by git) and is installed without its dependency list. torchcodec finds its
# FFmpeg libraries in the PyAV wheel, so no system package is needed.
#
# Usage: scripts/lerobot_compat.sh [python-with-moteur]      (default: .venv/bin/python)
# Writes benchmarks/results/lerobot_compat.json.
set -euo pipefail
cd "$(dirname "$0")/.."

ours="${1:-.venv/bin/python}"
environment=.venvs/lerobot
theirs="$environment/bin/python"

if [ ! -f "$environment/complete" ]; then
    rm -rf "$environment"
    python3.11 -m venv "$environment"
    "$theirs" -m pip install --quiet torch==2.13.0 "transformers>=5,<6" "datasets>=4,<5" "av>=15,<16" accelerate \
        "setuptools<81" draccus==0.10.0 "gymnasium<2" jaxtyping jsonlines termcolor deepdiff "opencv-python-headless<4.13" \
        "imageio[ffmpeg]" rerun-sdk wandb grpcio protobuf pyserial pynput diffusers einops safetensors \
        pydantic PyYAML "filelock>=3.30" cachetools tqdm
    "$theirs" -m pip install --quiet --no-deps lerobot==0.4.4 torchvision==0.28.0 torchcodec==0.13.0
    # The wheel's libraries carry a hash in their names; torchcodec asks for the plain ones.
    libraries="$("$theirs" -c 'import av, pathlib; print(pathlib.Path(av.__file__).parents[1] / "av.libs")')"
    for file in "$libraries"/lib{av,sw}*-*.so.*; do
        name="$(basename "$file")"
        stem="${name%%-*}"
        major="${name#*.so.}"
        ln -sf "$name" "$libraries/$stem.so.${major%%.*}"
    done
    touch "$environment/complete"
fi

libraries="$("$theirs" -c 'import av, pathlib; print(pathlib.Path(av.__file__).parents[1] / "av.libs")')"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
PYTHONPATH=. exec "$theirs" scripts/lerobot_compat.py --ours "$ours" --out benchmarks/results/lerobot_compat.json
