#!/usr/bin/env bash
# preempt.sh RUN_DIRECTORY [SECONDS]: this machine is about to go. Send SIGTERM to the driver of the run, if it is here,
# and wait until it has saved its checkpoint and ended, SECONDS (default 180) at most. It writes no `stopped` marker:
# the same job, submitted again, goes on.
set -euo pipefail

readonly lock=${1:?name the run directory}/lock # {"pid": 123, "host": "name"}, locked while the run lives
readonly seconds=${2:-180}

[[ -s $lock ]] || exit 0
[[ $(<"$lock") =~ \"pid\":\ *([0-9]+) ]] || exit 0
readonly pid=${BASH_REMATCH[1]}
[[ $(<"$lock") =~ \"host\":\ *\"([^\"]*)\" && ${BASH_REMATCH[1]} == "$(uname -n)" ]] || exit 0
if flock --shared --nonblock "$lock" true; then exit 0; fi # nobody holds it: the run has ended

kill -TERM "$pid" 2>/dev/null || exit 0
for ((second = 0; second < seconds; second++)); do
    kill -0 "$pid" 2>/dev/null || exit 0
    sleep 1
done
echo "preempt: process $pid of ${lock%/lock} still lives after $seconds s" >&2
exit 1
