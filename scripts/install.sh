# Sourced by demo.sh and test.sh: installs the package into .venv, with the versions of constraints.txt.
# Leaves the shell in the root of the checkout, with `factory` on the PATH.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found: install one (apt-get install python3.11 python3.11-venv)" >&2
  return 1
}

if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  "$python" -m venv .venv
fi

# Installs again only if one of the two files has changed.
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]; then
  rm -f .venv/installed
  echo "installing into $PWD/.venv (a few minutes the first time)" >&2
  .venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c constraints.txt
  echo "$wanted" > .venv/installed
fi

PATH="$PWD/.venv/bin:$PATH"
export PATH
