#!/usr/bin/env bash
# Runs a resnet-jax command on all workers of a Cloud TPU VM, from your machine; see launch/README.md:
#
#   export TPU_NAME=res50 ZONE=us-west4-a ACCELERATOR=v5litepod-16 BUCKET=my-bucket
#   launch/tpu_vm.sh create|install|run COMMAND|resume COMMAND|status|delete
set -euo pipefail

fail() { echo "tpu_vm.sh: $*" >&2; exit 2; }
need() {
  local name
  for name in "$@"; do [ -n "${!name:-}" ] || fail "$name is not set; launch/README.md lists the settings"; done
}

RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
RESTARTS=${RESTARTS:-20}
POLL=${POLL:-60}
# On the workers, in the home directory.
CHECKOUT=resnet_jax
STATE=.resnet-jax-run

tpus() { gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}; }
on_all() { tpus tpu-vm ssh "$TPU_NAME" --worker=all --command="$1"; }

# bash ignores -e within a condition, hence '|| return'.
create() {
  need ACCELERATOR
  if [ -z "${SPOT:-}" ]; then
    tpus tpu-vm create "$TPU_NAME" --accelerator-type="$ACCELERATOR" --version="$RUNTIME" --scopes=cloud-platform
    return
  fi
  tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=cloud-platform --spot || return
  local now
  until now=$(state) && [ "$now" = ACTIVE ]; do
    case $now in FAILED | SUSPENDED) echo "tpu_vm.sh: the request is $now" >&2; return 1 ;; esac
    echo "tpu_vm.sh: the request is ${now:-unknown}; waiting"
    sleep "$POLL"
  done
}

# ACTIVE (spot) or READY: usable. Empty: missing, or gcloud failed.
state() {
  if [ -n "${SPOT:-}" ]; then
    tpus queued-resources describe "$TPU_NAME" --format='value(state.state)' 2> /dev/null || true
  else
    tpus tpu-vm describe "$TPU_NAME" --format='value(state)' 2> /dev/null || true
  fi
}

install() {
  need BUCKET
  local archive
  archive=$(mktemp -d)/resnet_jax.tar.gz
  # Committed files only: a run records its commit.
  git -C "$(dirname "$0")/.." archive --format=tar.gz --prefix="$CHECKOUT/" --output="$archive" HEAD || return
  tpus tpu-vm scp "$archive" "$TPU_NAME:resnet_jax.tar.gz" --worker=all || return
  rm -r "$(dirname "$archive")"
  # The machines' Python is older than 3.11.
  on_all "set -e
    tar xzf resnet_jax.tar.gz
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 $CHECKOUT/.venv
    ~/.local/bin/uv pip install --quiet --python $CHECKOUT/.venv/bin/python -e '$CHECKOUT' 'jax[tpu]'
    ${WORKER_SETUP:-}
    command -v gcsfuse > /dev/null || { echo 'gcsfuse is missing on this worker; install it with WORKER_SETUP' >&2; exit 2; }"
}

# The command outlives the ssh connection.
run() {
  need BUCKET
  check_command "$@"
  local command
  command=$(printf '%q ' "$@")
  # No cache: workers see each other's files at once.
  on_all "set -e
    mkdir -p bucket $STATE
    mountpoint -q bucket ||
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 $(printf %q "$BUCKET") bucket
    if [ -f $STATE/pid ]; then kill -KILL -- -\$(cat $STATE/pid) 2> /dev/null || true; fi
    rm -f $STATE/exit
    ln -sfn ~/bucket $CHECKOUT/bucket
    cd $CHECKOUT
    nohup setsid bash -c 'echo \$\$ > ~/$STATE/pid; \"\$@\" >> ~/$STATE/log 2>&1; echo \$? > ~/$STATE/exit' \
      run .venv/bin/resnet-jax $command < /dev/null > /dev/null 2>&1 &"
}

check_command() {
  [ $# -gt 0 ] || fail "give a resnet-jax command: launch/tpu_vm.sh run train FILE.py:FUNCTION --workdir bucket/runs/NAME"
}

# One word per worker: running, lost, none, or the exit code.
codes() {
  on_all "cat $STATE/exit 2> /dev/null || { [ -f $STATE/pid ] || { echo none; exit 0; }
    kill -0 \$(cat $STATE/pid) 2> /dev/null && echo running || echo lost; }"
}

status() {
  echo "tpu_vm.sh: $TPU_NAME is $(state)"
  on_all "hostname; tail -n 5 $STATE/log 2> /dev/null || true"
  echo "tpu_vm.sh: processes: $(codes | xargs)"
}

delete() {
  if [ -n "${SPOT:-}" ]; then
    tpus queued-resources delete "$TPU_NAME" --force --quiet
  else
    tpus tpu-vm delete "$TPU_NAME" --quiet
  fi
}

resume() {
  need ACCELERATOR BUCKET
  check_command "$@"
  local failures=0 now result
  while true; do
    now=$(state)
    case $now in
      ACTIVE | READY) ;;
      *)
        echo "tpu_vm.sh: $TPU_NAME is ${now:-missing}: creating it"
        if [ -n "$now" ]; then delete || true; fi
        if ! { create && install && run "$@"; }; then echo "tpu_vm.sh: that failed; next attempt in $POLL s" >&2; fi
        sleep "$POLL"
        continue
        ;;
    esac
    result=$(codes | sort -u | xargs) || result=unreachable
    case " $result " in
      " 0 ") echo "tpu_vm.sh: done; the machine still exists and costs money: launch/tpu_vm.sh delete"; return ;;
      *" 2 "*) status; fail "bad input: see the log" ;;
      # One is done and waits for the others.
      " running " | " 0 running ") ;;
      " unreachable " | "  ") echo "tpu_vm.sh: no worker answers; next attempt in $POLL s" ;;
      *" none "*) { [ "$result" = none ] || echo "tpu_vm.sh: processes: $result"; install && run "$@"; } ;;
      *)
        failures=$((failures + 1))
        [ "$failures" -le "$RESTARTS" ] || { status; echo "tpu_vm.sh: failed $failures times (RESTARTS)" >&2; exit 1; }
        echo "tpu_vm.sh: processes: $result; all restart ($failures of $RESTARTS)"
        run "$@"
        ;;
    esac
    sleep "$POLL"
  done
}

case ${1:-} in
  create | install | run | resume | status | delete) ;;
  *) fail "give create, install, run, resume, status or delete" ;;
esac
command -v gcloud > /dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
need TPU_NAME ZONE
"$@"
