#!/bin/sh
# Copies the label files of /given to /labels, for the service's user alone. Those of a prepared folder are readable by
# their owner only, who is not the service's user.
set -eu
if [ -z "$(ls -A /given)" ]; then
    # shellcheck disable=SC2016 # the backquotes are for the reader
    echo 'LABELMETER_DATA/labels is empty: name a folder made by `python -m label_service prepare`, beginning with / or ./' >&2
    exit 1
fi
umask 077
rm -rf /labels/*
cp -r /given/. /labels/
chown -R 10001:10001 /labels
