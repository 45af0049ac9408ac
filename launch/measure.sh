#!/usr/bin/env bash
# What an accelerator does with residual networks: steps beside torch, the recipe of He et al. 2015, Table 6, seeds, XLA's flags, loop against
# scan; what is worth most first. Each benchmark leaves a JSON file in FOLDER. One whose file is there is left alone, so that the same command
# goes on where it was ended; one that fails or takes longer than LIMIT is said, and the others run.
#
#   pip install 'resnet-jax-lab[bench]'      # and jax for the accelerator
#   [LIMIT=20m] bash launch/measure.sh FOLDER
#
# Exit codes: 0 all are there; 1 some are not; 2 called wrongly.
set -euo pipefail
if [ $# -ne 1 ] || [[ $1 == -* ]]; then
  echo "usage: [LIMIT=20m] bash launch/measure.sh FOLDER" >&2
  exit 2
fi
for program in resnet-jax timeout; do
  command -v "$program" > /dev/null || { echo "$program is not on PATH" >&2; exit 2; }
done
folder=$1 missing=0
mkdir -p "$folder"

# measure NAME BENCHMARK [ARGUMENT ...]
measure() {
  local file=$folder/$1.json
  shift
  if [ -s "$file" ]; then
    echo "== $file is there"
    return
  fi
  echo "== resnet-jax bench $*"
  timeout "${LIMIT:-20m}" resnet-jax bench "$@" --output "$file" || {
    echo "== FAILED, or not done within ${LIMIT:-20m}: resnet-jax bench $*" >&2
    missing=1
  }
}

measure step-resnet50 step --networks resnet50_v15 --batch-sizes 128 256 512 1024 --dtype bfloat16 --work training --rounds 7
for depth in 20 56 110; do
  measure "run-resnet$depth" run cifar_resnet --depth "$depth" --dtype bfloat16 --steps 2000
done
measure run-resnet1202 run cifar_resnet --depth 1202 --dtype bfloat16 --steps 100
measure seeds seeds --seeds 1 2 4 8 16 --rounds 7
measure flags-resnet20 flags --network cifar_resnet20 --dtype bfloat16 --steps 100
measure flags-resnet50 flags --network resnet50_v15 --batch-size 256 --dtype bfloat16 --steps 20
measure step-cifar step --networks cifar_resnet20 cifar_resnet56 cifar_resnet110 --dtype bfloat16 --work training --rounds 9
measure step-resnet1202 step --networks cifar_resnet1202 --dtype bfloat16 --work training --rounds 5 --no-peers
measure execution execution --depths 20 56 110
exit "$missing"
