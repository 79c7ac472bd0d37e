#!/usr/bin/env bash
# Every GPU check and timing, newest questions first: benchmarks/gpu.sh OUTDIR [PACKED.npz]
# Needs PyTorch with CUDA and the package's pure-Python dependencies; no simulator. JAX (with flax and
# optax) and d3rlpy are timed where they are installed. The collapse needs cube-double with its rewards
# written in, made where OGBench is installed:
#   python benchmarks/collapse.py pack cube-double-play-v0.npz build/cube-double-packed.npz
# It takes at most COLLAPSE_SECONDS a way; what is there by then is drawn.
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUTDIR [PACKED.npz]}
packed=${2:-build/cube-double-packed.npz}
cd "$(dirname "$0")/.."
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/device.csv"

bench() { # NAME FLAGS…
  local name=$1
  shift
  timeout 300 python -m tql_offline bench --device cuda --out "$out/$name.json" "$@" 2>&1 | tee "$out/$name.log"
}

# 1. Do graphs, compiled losses and precisions give the same updates? Golden cases on the GPU?
timeout 300 python -m pytest -q -p no:cacheprovider tests/test_cuda.py tests/test_golden.py 2>&1 | tee "$out/tests.log"

# 2. Is xl in bfloat16 at half the peak and at three times JAX's rate? Is small at 1,000 updates/s?
bench xl --size xl --ways 'bfloat16,ours,tf32,plain path' --seconds 10 --rounds 5
bench small --size small --ways 'ours,bfloat16,eager,plain path' --seconds 5 --rounds 5

# 3. Are eight seeds of small at four times one's throughput?
bench seeds --size small --ways 'ours,2 seeds,4 seeds,8 seeds' --no-peers --no-memory --seconds 5 --rounds 5

# 4. Every size; IQL and CQL beside d3rlpy's and CORL's.
bench sizes --size tiny,medium,large,xxl --ways 'ours,bfloat16' --no-peers --seconds 4 --rounds 4
bench mlps --objective implicit,conservative --hidden 256x256 --ways ours --seconds 4 --rounds 4

# 5. Attention with entropy at many tokens.
python benchmarks/attention.py --device cuda --out "$out/attention.json" 2>&1 | tee "$out/attention.md"

# 6. Does the attention of an xl critic collapse without control, and not with it (50k updates each way)?
for mode in none layerwise; do
  timeout "${COLLAPSE_SECONDS:-7200}" python benchmarks/collapse.py train --out "$out/collapse" --sizes xl \
    --modes $mode --updates 50000 --every 100 --device cuda --path "$packed" 2>&1 | tee "$out/collapse-$mode.log"
done
python benchmarks/collapse.py draw "$out/collapse" --out "$out/collapse.svg" 2>&1 | tee "$out/collapse.md"
