#!/bin/bash
# Makes requirements.lock from pyproject.toml: every package with its exact version and the hashes of
# its files, for all platforms and Python versions we support. With arguments they are handed on, for
# instance `tools/lock.sh --upgrade` or `tools/lock.sh --upgrade-package scapy`. Why: docs/adr/0007.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
/usr/bin/python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# uv reads a configuration of its own; what pip was told about indexes must hold for it as well.
setting() { "$work/venv/bin/python" -m pip config get "$1" 2>/dev/null || true; }
links=()
for place in $(setting global.find-links); do links+=(--find-links "$place"); done
index=$(setting global.index-url)
[ -z "$index" ] || links+=(--default-index "$index")

"$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate "${links[@]}" "$@" --group dev --output-file requirements.lock pyproject.toml
git --no-pager diff --stat -- requirements.lock
