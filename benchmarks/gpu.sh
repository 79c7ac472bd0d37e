#!/usr/bin/env bash
# Every GPU check and timing, newest questions first: benchmarks/gpu.sh OUTDIR [PACKED.npz]
# Needs PyTorch with CUDA and the package's pure-Python dependencies; no simulator. The collapse needs
# cube-double with its rewards written in, made where OGBench is installed:
#   python benchmarks/collapse.py pack cube-double-play-v0.npz build/cube-double-packed.npz
# It takes at most COLLAPSE_SECONDS a way; what is there by then is drawn.
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUTDIR [PACKED.npz]}
packed=${2:-build/cube-double-packed.npz}
cd "$(dirname "$0")/.."
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/device.csv"

# 1. Does the attention of an xl critic collapse without control, and not with it (50k updates each way)?
for mode in none layerwise; do
  timeout "${COLLAPSE_SECONDS:-7200}" python benchmarks/collapse.py train --out "$out/collapse" --sizes xl \
    --modes $mode --updates 50000 --every 100 --device cuda --path "$packed" 2>&1 | tee "$out/collapse-$mode.log"
done
python benchmarks/collapse.py draw "$out/collapse" --out "$out/collapse.svg" 2>&1 | tee "$out/collapse.md"

# 2. Are Q, entropies and every gradient on the GPU those of the golden cases?
python -m pytest -q -p no:cacheprovider tests/test_golden.py tests/test_cuda.py 2>&1 | tee "$out/tests.log"

# 3. How many updates per second, eager float32, at each size?
python benchmarks/updates.py --device cuda --sizes tiny small medium large xl xxl --seconds 15 \
  --out "$out/updates.json" 2>&1 | tee "$out/updates.log"
