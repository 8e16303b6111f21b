#!/usr/bin/env bash
# A base image with Python 3.11 made from Debian's packages alone, for places that reach no image registry.
#   docker/base.sh [NAME]     default: localhost/headrace-base:bookworm
# Needs root, debootstrap and buildah. STORAGE holds buildah's options for where images are kept.
set -euo pipefail

name=${1:-localhost/headrace-base:bookworm}
read -ra storage <<<"${STORAGE:-}"
buildah=(buildah ${storage[@]+"${storage[@]}"})

if "${buildah[@]}" images --quiet "$name" >/dev/null 2>&1; then
    echo "$name is there already"
    exit 0
fi

tree=$(mktemp -d)
container=
clean() {
    [ -z "$container" ] || "${buildah[@]}" rm "$container" >/dev/null
    rm -rf --one-file-system "$tree"
}
trap clean EXIT

# The mirror is debootstrap's own default, or the one in DEBIAN_MIRROR; packages are checked against Debian's keys.
debootstrap --variant=minbase \
    --include=ca-certificates,python3.11,python3.11-venv,python3-distutils,tzdata \
    bookworm "$tree" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/* \
    "$tree"/usr/share/doc "$tree"/usr/share/man "$tree"/usr/share/locale "$tree"/var/log/*.log

container=$("${buildah[@]}" from scratch)
"${buildah[@]}" add --quiet "$container" "$tree" / >/dev/null
"${buildah[@]}" config --env LANG=C.UTF-8 --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --cmd /bin/bash "$container"
"${buildah[@]}" commit --quiet "$container" "$name" >/dev/null
echo "$name made"
