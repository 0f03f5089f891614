#!/bin/bash
# Installs Podman from the distribution, for the engines podman-… and their tests. Nothing else needs it.
#
#   provision/podman.sh    does nothing where there is a podman already
#
# Needs root and a package mirror. None of the package's services is started, and none starts with the next boot.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

! command -v podman >/dev/null || exit 0
say() { printf 'podman: %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || { say "installing packages needs root"; exit 127; }
command -v apt-get >/dev/null || { say "this machine has no apt-get: install podman by its own means"; exit 127; }

POLICY=/usr/sbin/policy-rc.d
LOG=$(mktemp "${TMPDIR:-/tmp}/quicferry-podman.XXXXXX")
trap 'rm -f "$LOG"' EXIT
if [ ! -e "$POLICY" ]; then
  trap 'rm -f "$LOG" "$POLICY"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$POLICY"
  chmod 755 "$POLICY"
fi
apt() { apt-get --quiet -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null >"$LOG" 2>&1; }
install() { apt install --yes --no-install-recommends podman; }

say "installing podman with apt"
install || { apt update && install; } || {
  cat "$LOG" >&2
  say "apt-get could not install podman; its messages are above"
  exit 1
}
if [ -d /run/systemd/system ]; then
  systemctl disable --quiet podman.socket podman.service podman-restart.service podman-auto-update.timer || true
fi
