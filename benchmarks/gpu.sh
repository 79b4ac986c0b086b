#!/usr/bin/env bash
# On a machine with an NVIDIA card: parity with transformers, and the speed of both, in less than six minutes.
#
#     benchmarks/gpu.sh [WHEELS] [OPTIONS of python -m benchmarks.gpu]
#
# Writes RESULTS-gpu.md, results-gpu.json and steps-gpu.png into this folder. PYTHON names the interpreter (default:
# python3), whose torch, 2.11 or later, must know the card; nothing is asked of a network. WHEELS is a folder of wheels:
# what of transformers, einops, safetensors and matplotlib is not installed is installed from there, in .venv-gpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

if [[ $# -gt 0 && "$1" != -* ]]; then
    wheels=$1
    shift
    if [[ ! -d "$wheels" ]]; then
        echo "$wheels: not a folder of wheels" >&2
        exit 2
    fi
    # An environment that also sees what the interpreter sees, be that an environment itself.
    seen=$("$python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))')
    "$python" -m venv .venv-gpu
    python=.venv-gpu/bin/python
    own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    while read -r folder; do
        echo "import site; site.addsitedir('$folder')"
    done <<< "$seen" > "$own/seen.pth"
    install=("$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels")
    "${install[@]}" einops safetensors transformers
    for extra in matplotlib pytest hypothesis sentencepiece; do
        "${install[@]}" "$extra" 2> /dev/null || echo "$extra: not among the wheels, and not needed" >&2
    done
fi
missing=$("$python" -c '
from importlib.util import find_spec
print(*(name for name in ("torch", "transformers", "einops", "safetensors") if find_spec(name) is None))')
if [[ -n "$missing" ]]; then
    echo "$python lacks $missing: name another interpreter in PYTHON, or give a folder of wheels" >&2
    exit 2
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" -W ignore -m benchmarks.gpu "$@"
