#!/usr/bin/env bash
# From nothing to an answering student: installs, builds the healthcare student with the demo profile, compares, asks.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

step() { # runs a command, then says how long it took
  local begun=$SECONDS
  printf '\n$ %s\n' "$*"
  "$@"
  printf '(%d min %02d s; %d min %02d s in all)\n' $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60)) $((SECONDS / 60)) $((SECONDS % 60))
}

step factory doctor
step factory build healthcare --profile demo
step factory list
step factory compare healthcare-small teacher
step factory ask healthcare-small "What are early signs of asthma?"
step factory ask teacher "What are early signs of asthma?"
step factory explain healthcare-small "The first sign of a cold is usually"
