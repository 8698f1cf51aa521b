#!/bin/sh
# Run every trial as a process of its own, so many at once, into one run folder, and show the table:
#   scripts/sweep.sh 6 -c smoke -m gpt2 -m t5 -n 3
# The same command again does what is missing. Fails where a trial did.
set -eu
at_once=$1
shift
# two processes that both take all cores are slower than one after the other
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > at_once ? cores / at_once : 1))}"

plan=$(tgsent run "$@" --dry-run --json)
trials=$(printf '%s\n' "$plan" | python3 -c '
import json, sys
print("\n".join(json.load(sys.stdin)["trials"]))')
folder=$(printf '%s\n' "$plan" | python3 -c '
import json, sys
config = json.load(sys.stdin)["config"]
print(config["output"]["dir"] + "/" + config["name"])')

failed=0
printf '%s\n' "$trials" | tr '\n' '\0' | xargs -0 -P "$at_once" -I '{}' \
  sh -c 'trial=$1; shift; tgsent run "$@" --quiet --only "$trial" >/dev/null' - '{}' "$@" || failed=1
tgsent report "$folder"
exit "$failed"
