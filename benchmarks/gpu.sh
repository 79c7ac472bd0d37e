#!/usr/bin/env bash
# Every GPU check and timing: benchmarks/gpu.sh OUTDIR [SECTION…], all sections in order if none is named.
# Needs PyTorch with CUDA, pytest, pytest-timeout and the package's dependencies but the simulators: not without
# pydantic (pydantic-core, annotated-types, typing-inspection), tomli-w and Gymnasium (Farama-Notifications,
# cloudpickle), nor with the older typer (before 0.29) or filelock (before 4.1) that a machine with PyTorch may have.
# JAX (with flax and optax) and d3rlpy are timed where they are installed. `collapse` needs cube-double with its rewards
# written in, made where OGBench is installed:
#   python benchmarks/collapse.py pack cube-double-play-v0.npz build/cube-double-packed.npz
# It takes at most COLLAPSE_SECONDS a way; what is there by then is drawn. COLLAPSE_UPDATES=6000 fits into a quarter of
# an hour (an estimate).
# Compiling takes most of the time: 40 to 60 s a size and precision where nothing is cached.
#
# LIMIT is how many seconds there are for everything, where a machine is lent for a time: a section is ended in time to
# be packed, and left out if it would have less than 30 s. If ARCHIVE names a file, OUTDIR is packed into it after each
# section, without the hundreds of MiB of checkpoints, so that a kill takes no figures along. ARCHIVE must not lie in
# OUTDIR. Where one folder comes back from the machine, put ARCHIVE there and OUTDIR elsewhere; otherwise the
# checkpoints come back, too.
# The exit code is 1 if a section failed, was ended or was left out.
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUTDIR [SECTION…]}
shift
cd "$(dirname "$0")/.."
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/jax}
python3 -c 'import pytest_timeout, tql_offline.bench.compare, tql_offline.cli, tql_offline.training.fqe' || exit 1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/device.csv"

limit() { # SECONDS → as many, or what is left but for ending and packing
  local left=$((${LIMIT:-1000000} - SECONDS - 15))
  echo $((left < 1 ? 1 : left < $1 ? left : $1))
}

within() { # SECONDS COMMAND…
  timeout -k 5 "$(limit "$1")" "${@:2}"
}

bench() { # NAME FLAGS…
  local name=$1 code=0
  shift
  within "${BENCH_SECONDS:-300}" python3 -m tql_offline bench --device cuda --out "$out/$name.json" "$@" \
    >"$out/$name.txt" 2>&1 || code=$?
  [ $code = 0 ] || echo "bench $name ended with code $code"
  grep -v ': round \|: preparing' "$out/$name.txt"
  return $code
}

check() { # NAME ARGUMENTS…
  local name=$1
  shift
  timeout -s INT -k 5 "$(limit 280)" python3 -m pytest -v -p no:cacheprovider --continue-on-collection-errors \
    --durations=8 --show-capture=no --tb=short "$@" 2>&1 | tee "$out/$name.txt" | grep -v PASSED
  return "${PIPESTATUS[0]}"
}

# Do graphs and precisions give the same updates? Golden cases on the GPU?
tests() { check tests tests/test_cuda.py tests/test_devices.py tests/test_golden.py -k 'not compiled'; }

# Do compiled losses? (three compilations)
compiled_tests() { check tests-compiled tests/test_cuda.py tests/test_devices.py -k compiled; }

# Does the attention kernel? (its float32 products take minutes to compile)
triton_tests() { check tests-triton tests/test_triton_attention.py; }

# Is small at 1,000 updates/s? Are eight seeds of it at four times one's throughput? (1 to 2 minutes)
small() {
  bench small --size small --ways 'bfloat16,2 seeds bfloat16,4 seeds bfloat16,8 seeds bfloat16' \
    --no-peers --no-memory --seconds 3 --rounds 4
}

# Is xl in bfloat16 at half the peak? (1 to 2 minutes)
xl() { bench xl --size xl --ways bfloat16 --no-peers --no-memory --seconds 4 --rounds 4; }

# At three times JAX's rate? XLA takes minutes to compile xl the first time.
# Ratios are over `ours`, in float32 as JAX's rows are that do not say TF32.
small_peers() {
  BENCH_SECONDS=420 bench small-peers --size small --ways ours,tf32,bfloat16 --no-memory --seconds 3 --rounds 4
}
xl_peers() {
  BENCH_SECONDS=550 bench xl-peers --size xl --ways 'ours,tf32,bfloat16,plain path' --no-memory --seconds 4 --rounds 4
}

# Every size (eight compilations, of 40 to 60 s each); IQL and CQL beside d3rlpy's and CORL's.
sizes() {
  BENCH_SECONDS=550 bench sizes --size tiny,medium,large,xxl --ways 'ours,bfloat16' --no-peers --no-memory \
    --seconds 3 --rounds 3
}
mlps() { bench mlps --objective implicit,conservative --hidden 256x256 --ways ours --no-memory --seconds 3 --rounds 3; }

# Attention with entropy at many tokens.
attention() {
  within 60 python3 benchmarks/attention.py --device cuda --out "$out/attention.json" 2>&1 | tee "$out/attention.md"
}

# Which kernels does an update spend its time in?
profile() {
  local code=0
  within 150 python3 benchmarks/profile_update.py --size xl --way bfloat16 --device cuda \
    >"$out/profile-xl.txt" 2>&1 || code=$?
  within 150 python3 benchmarks/profile_update.py --size small --way ours --device cuda \
    >"$out/profile-small.txt" 2>&1 || code=$?
  return $code
}

# Do TF32 and bfloat16 learn what float32 does? Entropies and Q of the demo's run over three seeds.
#   python benchmarks/collapse.py pack --dataset pointmaze-medium-navigate-singletask-task1-v0 \
#     pointmaze-medium-navigate-v0.npz build/pointmaze-packed.npz
precision() {
  local code=0
  within 3600 python3 benchmarks/precision.py train --runs "$out/precision" --device cuda \
    --path "${PRECISION_DATA:-build/pointmaze-packed.npz}" 2>&1 | tee "$out/precision.txt" || code=$?
  within 60 python3 benchmarks/precision.py table "$out/precision" --json "$out/precision.json" |
    tee "$out/precision.md" || code=$?
  return $code
}

# Does the attention of an xl critic collapse without control, and not with it (50k updates each way)? Its updates are
# eager and one by one, as on the CPU it is compared with: this times nothing.
collapse() {
  local code=0 most=${COLLAPSE_SECONDS:-7200} half=$(($(limit 1000000) * 9 / 20)) # leaves some to draw
  for mode in none layerwise; do
    within $((half < most ? half : most)) python3 benchmarks/collapse.py train --out "$out/collapse" --sizes xl --modes $mode \
      --updates "${COLLAPSE_UPDATES:-50000}" --every 100 --device cuda \
      --path "${COLLAPSE_DATA:-build/cube-double-packed.npz}" 2>&1 | tee "$out/collapse-$mode.txt" || code=$?
  done
  within 60 python3 benchmarks/collapse.py draw "$out/collapse" --out "$out/collapse.svg" 2>&1 |
    tee "$out/collapse.md" || code=$?
  return $code
}

say() { echo "$1" | tee -a "$out/seconds.txt"; }

pack() { # renamed last, so that a kill leaves what was packed before
  tar -C "$out" --exclude=checkpoints -czf "$ARCHIVE.part" . && mv "$ARCHIVE.part" "$ARCHIVE"
}

# The first seven are what fits into a quarter of an hour with nothing compiled yet (an estimate).
sections='tests small xl attention profile small_peers compiled_tests triton_tests precision xl_peers mlps sizes'
sections+=' collapse'
[ $# -gt 0 ] || set -- $sections
failed=0
for section in "$@"; do
  started=$SECONDS
  if [[ " $sections " != *" $section "* ]]; then
    failed=1
    say "there is no section $section"
  elif ((${LIMIT:-1000000} - SECONDS < 30)); then
    failed=1
    say "$section: no time left"
  elif "$section"; then
    say "$section took $((SECONDS - started)) s"
  else
    failed=1
    say "$section failed after $((SECONDS - started)) s"
  fi
  [ -z "${ARCHIVE:-}" ] || pack
done
exit $failed
