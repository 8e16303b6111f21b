#!/bin/sh
# Makes the secrets that are missing, a file each, and prints none.
#   docker/secrets.sh [FOLDER]     default: docker/secrets
# The folder is closed to other users; the files in it can be read by all, because a container's user is none of this
# machine. An existing file stays as it is: to change one, write it yourself, at least 16 characters. No line's end: where
# a Secret of Kubernetes hands a file on, it would be a part of the secret.
set -eu

folder=${1:-$(dirname -- "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"

make_secret() { # NAME [BEFORE]
    [ ! -e "$folder/$1" ] || return 0
    # Phoenix wants a digit and a lower-case letter.
    printf '%sa1%s' "${2:-}" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >"$folder/.$1"
    chmod 0444 "$folder/.$1"
    mv "$folder/.$1" "$folder/$1"
    echo "made $1"
}

for role in postgres headrace headrace_reader prefect mlflow phoenix; do
    make_secret "postgres-$role"
done
make_secret prefect-auth headrace:
make_secret phoenix-secret
make_secret phoenix-api-key
make_secret phoenix-admin-password
make_secret model-api-key
