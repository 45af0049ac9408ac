#!/usr/bin/env bash
# Runs a resnet-jax command on all workers of a Cloud TPU VM, from your machine; see launch/README.md:
#   launch/tpu_vm.sh create|install|run COMMAND|resume COMMAND|status|delete
set -euo pipefail

say() { echo "tpu_vm.sh: $*"; }
fail() { say "$@" >&2; exit 2; }
need() {
  local name
  for name in TPU_NAME ZONE "$@"; do [ -n "${!name:-}" ] || fail "$name is not set; launch/README.md lists the settings"; done
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
  tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=cloud-platform ${SPOT:+--spot} || return
  local now
  until now=$(state) && [ "$now" = ACTIVE ]; do
    case $now in FAILED | SUSPENDED) say "the request is $now" >&2; return 1 ;; esac
    say "the request is ${now:-unknown}; waiting"
    sleep "$POLL"
  done
}

# ACTIVE: usable. Empty: missing, or gcloud failed.
state() { tpus queued-resources describe "$TPU_NAME" --format="value(state.state)" 2> /dev/null || true; }

delete() { tpus queued-resources delete "$TPU_NAME" --force --quiet; }

install() {
  local archive code=0
  archive=$(mktemp)
  # Committed files only: a run records its commit.
  git -C "$(dirname "$0")/.." archive --format=tar.gz --prefix="$CHECKOUT/" --output="$archive" HEAD &&
    tpus tpu-vm scp "$archive" "$TPU_NAME:resnet_jax.tar.gz" --worker=all || code=$?
  rm "$archive"
  [ "$code" = 0 ] || return "$code"
  # The machines' Python is older than 3.11.
  on_all "set -e
    tar xzf resnet_jax.tar.gz
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 $CHECKOUT/.venv
    ~/.local/bin/uv pip install --quiet --python $CHECKOUT/.venv/bin/python -e '${CHECKOUT}[train]' 'jax[tpu]'
    ${WORKER_SETUP:-}
    command -v gcsfuse > /dev/null || { echo 'gcsfuse is missing on this worker; install it with WORKER_SETUP' >&2; exit 2; }"
}

# The command outlives the ssh connection.
run() {
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
      run .venv/bin/resnet-jax $(printf '%q ' "$@") < /dev/null > /dev/null 2>&1 &"
}

# One word per worker: running, lost, none, or the exit code.
codes() {
  on_all "cat $STATE/exit 2> /dev/null || { [ -f $STATE/pid ] || { echo none; exit 0; }
    kill -0 \$(cat $STATE/pid) 2> /dev/null && echo running || echo lost; }"
}

status() {
  say "$TPU_NAME is $(state)"
  on_all "hostname; tail -n 5 $STATE/log 2> /dev/null || true"
  say "processes: $(codes | xargs)"
}

resume() {
  local failures=0 now result
  while true; do
    now=$(state)
    if [ "$now" != ACTIVE ]; then
      say "$TPU_NAME is ${now:-missing}: creating it"
      if [ -n "$now" ]; then delete || true; fi
      if ! { create && install && run "$@"; }; then say "that failed; next attempt in $POLL s" >&2; fi
      sleep "$POLL"
      continue
    fi
    result=$(codes | sort -u | xargs) || result=unreachable
    case " $result " in
      " 0 ") say "done; the machine still exists and costs money: launch/tpu_vm.sh delete"; return ;;
      *" 2 "*) status; fail "bad input: see the log" ;;
      # One is done and waits for the others.
      " running " | " 0 running ") ;;
      " unreachable " | "  ") say "no worker answers; next attempt in $POLL s" ;;
      *" none "*) { [ "$result" = none ] || say "processes: $result"; install && run "$@"; } ;;
      *)
        failures=$((failures + 1))
        [ "$failures" -le "$RESTARTS" ] || { status; say "failed $failures times (RESTARTS)" >&2; exit 1; }
        say "processes: $result; all restart ($failures of $RESTARTS)"
        run "$@"
        ;;
    esac
    sleep "$POLL"
  done
}

case ${1:-} in
  create) need ACCELERATOR ;;
  install) need BUCKET ;;
  run | resume)
    need BUCKET
    [ "$1" = run ] || need ACCELERATOR
    [ $# -gt 1 ] || fail "give a resnet-jax command, as in $1 train FILE.py:FUNCTION --workdir bucket/runs/NAME"
    ;;
  status | delete) need ;;
  *) fail "give create, install, run, resume, status or delete" ;;
esac
[[ $RESTARTS =~ ^[0-9]+$ && $POLL =~ ^[0-9]+$ ]] || fail "RESTARTS and POLL must be numbers, got '$RESTARTS' and '$POLL'"
command -v gcloud > /dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
"$@"
