#!/bin/sh
# Unpacks Debian's runsc (gVisor) into the folder $1, for the tests that run the judge inside it. Called by the Makefile.
# Bookworm's, of 2022, lacks PR_SET_CHILD_SUBREAPER, so an older Debian takes trixie's, from the mirror of its own sources.
set -eu
folder=$1
[ ! -x "$folder/runsc" ] || exit 0
. /etc/os-release
[ "$ID" = debian ]
case $VERSION_CODENAME in bullseye | bookworm) suite=trixie ;; *) suite=$VERSION_CODENAME ;; esac
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' |
    awk -v own="$VERSION_CODENAME" '$2 == own && $3 == "main" { print $1; exit }')
[ -n "$mirror" ]
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
: >"$work/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -o Acquire::Retries=0 -o Acquire::http::Timeout=20 \
        -o Acquire::https::Timeout=20 "$@"
}
cd "$work"
apt update
apt download runsc
dpkg -x runsc_*.deb unpacked
cd - >/dev/null
mkdir -p "$folder"
mv "$work/unpacked/usr/bin/runsc" "$folder/runsc"
