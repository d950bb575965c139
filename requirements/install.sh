#!/bin/sh
# Makes the virtual environment $1 from the pinned list $2. Called by the Makefile.
set -eu
venv=$1 pins=$2 python=${PYTHON:-python3}

"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"setup: Python {sys.version.split()[0]} is too old: set PYTHON to a Python 3.11 or newer, as in "
             "`make demo PYTHON=python3.11`.")
try:
    import ensurepip, venv  # noqa: F401
except ImportError:
    sys.exit("setup: this Python has no venv module: install it first (Debian: apt install python3-venv).")
PY

echo "setup: packages of $pins into $venv (once, a few minutes)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# The list is complete, so nothing is resolved: --no-deps keeps packages out that a text model never loads.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$pins"
# A default index may serve a CUDA build of torch, which needs its own libraries even without a GPU.
if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
    echo "setup: this build of torch needs further packages: installing them"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$pins")"
    "$venv/bin/python" -c "import torch"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
