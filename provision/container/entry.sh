#!/bin/bash
# Starts a command in the container. A CRIU is judged by a dump, which most builders of images do not allow:
# then none could be kept, and it is fetched when the container starts for the first time (needs a network).
set -uo pipefail
cd /quicferry || exit 1
[ -x .cache/criu/bin/criu ] || provision/criu.sh >&2 ||
  echo "without CRIU: the engine handoff works, those of CRIU and runc do not" >&2
exec "$@"
