#!/usr/bin/env bash
# Run loader.py beside LeRobot, in the environment that scripts/lerobot_compat.sh builds (run that first).
set -euo pipefail
cd "$(dirname "$0")/.."
theirs=.venvs/lerobot/bin/python
[ -f .venvs/lerobot/complete ] || { echo "run scripts/lerobot_compat.sh first: it builds .venvs/lerobot" >&2; exit 1; }
libraries="$("$theirs" -c 'import av, pathlib; print(pathlib.Path(av.__file__).parents[1] / "av.libs")')"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1
LD_LIBRARY_PATH="$libraries" PYTHONPATH=. exec "$theirs" benchmarks/loader.py "$@"
