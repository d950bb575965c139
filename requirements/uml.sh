#!/bin/sh
# Unpacks Debian's user-mode Linux into the folder $1, for the tests of control groups of version 2: a kernel of our own,
# whatever this machine has mounted. Called by the Makefile.
set -eu
folder=$1
[ ! -x "$folder/linux.uml" ] || exit 0
. /etc/os-release
[ "$ID" = debian ]
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
apt() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root \
        -o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}
cd "$work"
apt update
apt download user-mode-linux
dpkg -x user-mode-linux_*.deb unpacked
cd - >/dev/null
mkdir -p "$folder"
mv "$work/unpacked/usr/bin/linux.uml" "$folder/linux.uml"
