#!/bin/sh
# Make or refresh the virtual environment: scripts/make_venv.sh FOLDER
#
# Called by the Makefile when FOLDER is missing or older than pyproject.toml or constraints.txt.
#   PYTHON    the interpreter to use instead of searching for one
#   PIP_ARGS  further arguments for pip install; where packages come from is otherwise pip's own configuration
#
# The newest interpreter is not the best choice: the pins in constraints.txt were tested with the oldest one first.
set -eu

folder=$1
candidates=${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}

say() { printf '%s\n' "$*" >&2; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
# Debian and Ubuntu ship python3 without ensurepip: `import venv` works there, making an environment does not.
has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

find_python() {
    python=
    for name in $candidates; do
        is_new_enough "$name" || continue
        if has_venv "$name"; then
            python=$name
            return
        fi
        python=${python:-$name}
    done
}

if [ -e "$folder" ] && ! is_new_enough "$folder/bin/python"; then
    if [ ! -f "$folder/pyvenv.cfg" ]; then
        say "$folder is there but is no virtual environment: move it away, or name another folder with VENV=."
        exit 1
    fi
    say "environment: the Python of $folder is gone or older than 3.11, making it anew"
    rm -rf "$folder"
fi

if [ ! -e "$folder" ]; then
    find_python
    if [ -z "$python" ]; then
        say "No Python 3.11 or newer was found (looked for: $candidates): install one, or name it with PYTHON=/path/to/python."
        exit 1
    fi
    if ! has_venv "$python"; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "environment: installing $package, which Debian keeps apart from Python"
            apt-get update -qq >&2
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >&2
        else
            say "$python has no venv module: install it (on Debian or Ubuntu: sudo apt-get install $package), then run this again."
            exit 1
        fi
    fi
    say "environment: making $folder with $("$python" --version)"
    "$python" -m venv "$folder"
fi

say "environment: installing packages (the first time this takes minutes; PyTorch may be gigabytes)"
# First all that is pinned by content; the second command finds only PyTorch missing (see scripts/lock.sh).
# shellcheck disable=SC2086 # PIP_ARGS is meant to be split into words
"$folder/bin/python" -m pip install -qq --disable-pip-version-check ${PIP_ARGS:-} \
    --require-hashes -r requirements/development.txt >&2
# shellcheck disable=SC2086
"$folder/bin/python" -m pip install -qq --disable-pip-version-check ${PIP_ARGS:-} \
    -c constraints.txt -e '.[service,sources,trainer,activeml,dev]' >&2
say "environment: ready"
