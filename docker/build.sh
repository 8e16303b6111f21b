#!/usr/bin/env bash
# Builds an image with buildah: no daemon, no privileges beyond root's own, no registry if BASE is here already.
#   BASE=localhost/headrace-base:bookworm docker/build.sh app headrace/app:0.1.0
#
# BASE      the image to start from; default: what the Dockerfile says; "debian": docker/base.sh makes one
# STORAGE   buildah's options for where images are kept, such as --root DIR
# What pip is told on this machine (its files, a certificate, folders of wheels) holds in the build too. Those are only
# mounted while it runs: nothing of them gets into a layer.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=$1 name=$2
command -v buildah >/dev/null || {
    echo "build.sh: there is no buildah here; on Debian and Ubuntu: apt-get install buildah" >&2
    exit 1
}
read -ra storage <<<"${STORAGE:-}"
options=()
if [ "${BASE:-}" = debian ]; then
    BASE=localhost/headrace-base:bookworm
    docker/base.sh "$BASE"
fi
[ -z "${BASE:-}" ] || options+=(--build-arg "BASE=$BASE")

# Each file or folder that pip's configuration names is mounted below /run/pip, and pip.conf says so.
settings=$(mktemp -d)
trap 'rm -rf --one-file-system "$settings"' EXIT
printf '[global]\n' >"$settings/pip.conf"
while IFS= read -r line; do # global.find-links='/a /b' or :env:.cert='/c'
    key=${line%%=*} value=${line#*=}
    key=${key##*.}
    if grep -q "^$key = " "$settings/pip.conf"; then continue; fi
    value=${value#\'}
    value=${value%\'}
    words=()
    for word in ${value//\\n/ }; do
        path=${word#file://}
        above=$path
        [[ $path != */simple ]] || above=${path%/simple} # an index's pages name files beside it
        if [[ $path == /* && -e $above ]]; then
            inside=/run/pip/$key-${#words[@]}
            options+=(--volume "$above:$inside:ro")
            word=${word/"$above"/"$inside"}
        fi
        words+=("$word")
    done
    printf '%s = %s\n' "$key" "${words[*]}" >>"$settings/pip.conf"
done < <(python3 -m pip config list 2>/dev/null || true)
options+=(--volume "$settings/pip.conf:/run/pip/pip.conf:ro" --build-arg PIP_CONFIG_FILE=/run/pip/pip.conf)

buildah ${storage[@]+"${storage[@]}"} build --isolation chroot --format docker ${LAYERS:+--layers} "${options[@]}" \
    --build-arg "VERSION=${name##*:}" --build-arg "REVISION=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)" \
    --file "docker/$kind.Dockerfile" --tag "$name" .
