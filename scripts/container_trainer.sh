#!/bin/sh
# What the trainer's container runs: one run, resumed when it was cut off, left alone when it is finished.
#
#   TRAINER_PROFILE, TRAINER_SEED, TRAINER_BUDGET  as in `python -m trainer run --help`; empty means its default
#   TRAINER_SERVICE, TRAINER_DATA, TRAINER_RESULTS set by the image
#
# Each setting has a folder of its own, so another seed never meets the files of this one.
set -eu
: "${TRAINER_SERVICE:?is set by the image}" "${TRAINER_DATA:?is set by the image}" "${TRAINER_RESULTS:?is set by the image}"

seed=${TRAINER_SEED:-1}
out=$TRAINER_RESULTS/${TRAINER_PROFILE:-auto}-seed$seed${TRAINER_BUDGET:+-$TRAINER_BUDGET}

if [ -f "$out/result.json" ] && [ -f "$out/report.html" ]; then
    echo "This run is finished; its result (to start over, remove its folder in the results):"
    cat "$out/result.json"
    exit 0
fi
if ! mkdir -p "$out" 2>/dev/null || ! [ -w "$out" ]; then
    echo "The results folder cannot be written by user $(id -u): give it to that user, or set TRAINER_UID and TRAINER_GID to its owner." >&2
    exit 1
fi

set -- run --service "$TRAINER_SERVICE" --data "$TRAINER_DATA" --out "$out" --seed "$seed"
[ -z "${TRAINER_PROFILE:-}" ] || set -- "$@" --profile "$TRAINER_PROFILE"
[ -z "${TRAINER_BUDGET:-}" ] || set -- "$@" --budget "$TRAINER_BUDGET"
[ -z "${TRAINER_DEVICE:-}" ] || set -- "$@" --device "$TRAINER_DEVICE"
[ -z "$(ls -A "$out")" ] || set -- "$@" --resume
exec python -m trainer "$@"
