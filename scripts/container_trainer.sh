#!/bin/sh
# What the trainer's container runs: one run, resumed when it was cut off, left alone when it is finished.
#
#   TRAINER_SERVICE, TRAINER_DATA, TRAINER_RESULTS  are set by the image
#   TRAINER_REGISTRATION_TOKEN_FILE                 holds the token that opening a run needs
#   TRAINER_PROFILE, TRAINER_SEED, TRAINER_BUDGET   and every other option: `python -m trainer run --help`
#
# The trainer reads its options from the environment. Each profile, seed and budget has a folder of its own, so
# another seed never meets the files of this one.
set -eu
: "${TRAINER_SERVICE:?is set by the image}" "${TRAINER_DATA:?is set by the image}" "${TRAINER_RESULTS:?is set by the image}"

out=$TRAINER_RESULTS/${TRAINER_PROFILE:-auto}-seed${TRAINER_SEED:-1}${TRAINER_BUDGET:+-$TRAINER_BUDGET}

if [ -f "$out/result.json" ] && [ -f "$out/report.html" ]; then
    echo "This run is finished; its result (to start over, remove its folder in the results):"
    cat "$out/result.json"
    exit 0
fi
if ! mkdir -p "$out" 2>/dev/null || ! [ -w "$out" ]; then
    echo "The results folder cannot be written by user $(id -u): give it to that user, or set TRAINER_UID and TRAINER_GID to its owner." >&2
    exit 1
fi

# The service has made the token by the time it is healthy.
if [ -n "${TRAINER_REGISTRATION_TOKEN_FILE:-}" ]; then
    TRAINER_REGISTRATION_TOKEN=$(cat "$TRAINER_REGISTRATION_TOKEN_FILE")
    export TRAINER_REGISTRATION_TOKEN
    unset TRAINER_REGISTRATION_TOKEN_FILE
fi

set -- run --out "$out"
[ -z "$(ls -A "$out")" ] || set -- "$@" --resume
exec python -m trainer "$@"
