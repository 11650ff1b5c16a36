#!/bin/sh
# Write requirements/*.txt anew: what each program installs, each file with its SHA-256 (`make lock`).
#
# Versions are those of constraints.txt. PyTorch is left out, with the CUDA packages that only its CUDA build requires:
# its CPU and CUDA builds have one version and different files, and which one an installation takes is its operator's
# choice. So PyTorch is pinned by version (constraints.txt) and all else by content.
#   UV  the program uv, if it is not on the path
set -eu

lock() {
    name=$1
    shift
    target=requirements/$name.txt
    echo "# Made by make lock from pyproject.toml and constraints.txt. pip install --require-hashes -r $target" >"$target.part"
    "${UV:-uv}" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        -c constraints.txt "$@" pyproject.toml |
        awk '/^[a-z0-9]/ { kept = !/^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==/ } kept' >>"$target.part"
    mv "$target.part" "$target"
}

lock service --extra service --extra postgres
lock trainer --extra trainer
# What the virtual environment of make has.
extras=$(sed -n "s/^[^#]*'\.\[\([a-z,]*\)\]'.*/\1/p" scripts/make_venv.sh)
# shellcheck disable=SC2046 # one word for each extra
lock development $(echo "$extras" | tr , '\n' | sed 's/^/--extra=/')
