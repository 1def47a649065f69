#!/usr/bin/env bash
# From nothing to a student that answers: installs, plans and builds the healthcare student (demo profile), compares it, asks it.
# --full goes on: serves the student to a live client, fails to promote a spoiled version, and promotes a better one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

step() { # runs a command, prints how long it took, and returns its exit code
  local begun=$SECONDS code=0
  printf '\n$ %s\n' "$*"
  "$@" || code=$?
  printf '(%d min %02d s; %d min %02d s in all)\n' $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60)) $((SECONDS / 60)) $((SECONDS % 60))
  return $code
}

newest() { # the newest version of the healthcare student, whatever its verdict
  factory list --json | python -c 'import json, sys; print([one["reference"] for one in json.load(sys.stdin) if one["name"] == "healthcare-medium"][-1])'
}

step factory doctor
step factory plan healthcare --profile demo
step factory build healthcare --profile demo
step factory list
built=$(newest) # by number: a student that failed a gate is shown and asked all the same
step factory compare "$built" teacher
step factory ask "$built" "What are early signs of asthma?"
step factory ask teacher "What are early signs of asthma?"
step factory explain "$built" "The first sign of a cold is usually"
[ "${1:-}" = --full ] || exit 0

PORT=8377
scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$scratch"' EXIT

variant() { # a copy of domains/ with one more line in healthcare.yaml
  rm -rf "$scratch/domains"
  cp -r domains "$scratch/domains"
  echo "$1" >> "$scratch/domains/healthcare.yaml"
}

step factory promote "$built"
# One core serves and the others build: sharing a core, the threads of both would wait for each other for minutes.
export OMP_NUM_THREADS=$(($(nproc) > 1 ? $(nproc) - 1 : 1))
factory serve --port $PORT --threads 1 2> "$scratch/serve.log" &
timeout 120 bash -c "until curl -sf http://127.0.0.1:$PORT/health; do sleep 1; done" || { cat "$scratch/serve.log" >&2; exit 1; }
good=healthcare-medium@$((${built#*@} + 2))
python scripts/live_client.py healthcare-medium --until "$good" --url http://127.0.0.1:$PORT/v1 &
client=$!

printf '\nA version spoiled on purpose (a learning rate a hundred times too high), while the client goes on:\n'
variant 'distill: {learning_rate: 0.05}'
step factory build healthcare --profile demo --domains "$scratch/domains"
code=0
step factory promote "$(newest)" || code=$?
[ $code -eq 3 ] || { echo "error: promoting the spoiled version gave exit code $code, not 3" >&2; exit 1; }

printf '\nA good one, with adapters of twice the rank:\n'
variant 'distill: {rank: 16, alpha: 32}'
step factory build healthcare --profile demo --domains "$scratch/domains"
step factory promote "$good"
wait $client
