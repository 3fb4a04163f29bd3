#!/bin/sh
# Print the path of a Python >= 3.12 that can make a virtual environment, or say what to install.
#
# Each candidate is run before it is believed: a pyenv shim may be on PATH and still refuse to start.
# With PYTHON set, that interpreter is the only candidate.
set -u

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

report_if_usable() {
    usable "$1" || return 0
    # The base executable: not a shim, nor a virtual environment that may go away.
    "$1" -c 'import sys; print(sys._base_executable)'
    exit 0
}

if [ -n "${PYTHON:-}" ]; then
    report_if_usable "$PYTHON"
    echo "PYTHON=$PYTHON does not start, is older than 3.12, or lacks the venv or ensurepip module" >&2
    exit 1
fi

for name in python3.14 python3.13 python3.12 python3; do
    report_if_usable "$name"
done
for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3; do
    report_if_usable "$path"
done
if found=$(uv python find '>=3.12' 2>/dev/null); then
    report_if_usable "$found"
fi

cat >&2 <<'MESSAGE'
jaxserve needs Python 3.12 or newer, with its venv module. Install one of:
  Debian, Ubuntu   apt install python3.12 python3.12-venv
  Fedora           dnf install python3.12
  macOS            brew install python@3.12
  anywhere         uv python install 3.12, or pyenv install 3.12
then run make again, or name the interpreter: make PYTHON=/path/to/python3
MESSAGE
exit 1
