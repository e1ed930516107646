#!/bin/sh
# Prints the path of a Python that can make the environment:  find_python.sh [PYTHON]
# With PYTHON, a path or a name without arguments, it uses that Python or refuses it. Without, it uses the first suitable
# one of python3, python3.12, python3.13, python3.14 and uv's. Standard error says which, or what is missing and what to
# type.
set -u

oldest_minor=12
probe='
import sys
words = ["%d.%d.%d" % sys.version_info[:3]]
for name in ("venv", "ensurepip"):
    try:
        __import__(name)
    except ImportError:
        words.append(name)
print(" ".join(words))
'
refused=''

refuse() {
    refused="$refused
  $1"
}

# Ends the script if the Python $1 is suitable; otherwise records why it is not.
try() {
    if ! path=$(command -v "$1"); then
        refuse "$1: not found"
        return
    fi
    # The version, followed by the missing modules.
    found=$("$path" -S -c "$probe" 2>/dev/null) || found=''
    version=${found%% *}
    lacking=${found#"$version"}
    minor=${version#3.}
    minor=${minor%%.*}
    if [ -z "$version" ]; then
        refuse "$1 ($path) does not run"
    elif [ "$minor" -lt "$oldest_minor" ]; then
        refuse "$1 ($path) is Python $version: too old"
    elif [ -n "$lacking" ]; then
        refuse "$1 ($path) is Python $version, without$lacking: apt install python3.$minor-venv, on Debian and Ubuntu"
    else
        echo "Taking Python $version: $path" >&2
        echo "$path"
        exit 0
    fi
}

if [ -n "${1:-}" ]; then
    try "$1"
    refuse "PYTHON is set to $1, so no other was tried"
else
    for name in python3 python3.12 python3.13 python3.14; do
        try "$name"
    done
    for uv in uv "${HOME:-}/.local/bin/uv"; do
        if ! command -v "$uv" >/dev/null; then
            refuse "$uv: not found"
        # --system: not the Python of an environment, which may be the one that is about to be made.
        elif python=$("$uv" python find --system ">=3.$oldest_minor" 2>/dev/null); then
            try "$python"
        else
            refuse "$uv has no such Python"
        fi
    done
fi

echo "gnp_scale needs Python 3.$oldest_minor or newer, with the modules venv and ensurepip, and found none:$refused
To get one (apt as root):
  Ubuntu 24.04, Debian 13:
      apt install python3-venv make
  Debian 12, which has Python 3.11 only, or another system with an older one (uv brings its own):
      apt install pipx make
      pipx install uv && ~/.local/bin/uv python install 3.12
Then type the same command again. Or name a Python that is elsewhere: make PYTHON=/path/to/python3.12 ..." >&2
exit 1
