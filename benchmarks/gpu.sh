#!/usr/bin/env bash
# Every GPU check and timing, newest questions first: benchmarks/gpu.sh OUTDIR
# Needs PyTorch with CUDA and the package's pure-Python dependencies; no simulator.
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUTDIR}
cd "$(dirname "$0")/.."
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/device.csv"

# 1. Are Q, entropies and every gradient on the GPU those of the golden cases?
python -m pytest -q -p no:cacheprovider tests/test_golden.py tests/test_cuda.py 2>&1 | tee "$out/tests.log"

# 2. How many updates per second, eager float32, at each size?
python benchmarks/updates.py --device cuda --sizes tiny small medium large xl xxl --seconds 15 \
  --out "$out/updates.json" 2>&1 | tee "$out/updates.log"
