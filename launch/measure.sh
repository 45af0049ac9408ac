#!/usr/bin/env bash
# Runs every benchmark of an accelerator and writes FOLDER/NAME.json, unless it exists: the same command continues.
# Needs resnet-jax-lab[benchmarks], and jax for the accelerator. Exit codes: 0 all files exist; 1 some do not; 2 wrong arguments.
set -euo pipefail
if [ $# -ne 1 ] || [[ $1 == -* ]]; then echo "usage: [LIMIT=20m] bash launch/measure.sh FOLDER" >&2; exit 2; fi
benchmarks=$(dirname "$0")/../benchmarks
folder=$1 missing=0
mkdir -p "$folder"

# measure NAME SCRIPT [ARGUMENT ...]
measure() {
  local file=$folder/$1.json script=$2
  shift 2
  if [ -s "$file" ]; then echo "== $file exists"; return; fi
  echo "== $script $*"
  timeout "${LIMIT:-20m}" "${PYTHON:-python}" "$benchmarks/$script.py" "$@" --output "$file" || {
    echo "== FAILED or exceeded ${LIMIT:-20m}: $script $*" >&2
    missing=1
  }
}

measure step-resnet50 step --networks resnet50_v15 --batch-sizes 128 256 512 1024 --dtype bfloat16 --rounds 7
measure step-cifar step --networks cifar_resnet20 cifar_resnet56 cifar_resnet110 --dtype bfloat16
measure run-resnet20 run --experiment he2015_cifar10:resnet20 --steps 2000
measure run-resnet110 run --experiment he2015_cifar10:resnet110 --steps 2000
measure compile compile --depths 20 56 110
measure dispatch-resnet50 compile --network resnet50_v15 --depths --size 32 --batch-size 2 --blocks loop
measure input input
exit "$missing"
