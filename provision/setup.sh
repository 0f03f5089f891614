#!/bin/bash
# Makes a bare Debian 12, Debian 13 or Ubuntu 24.04 ready for quicferry.
#
#   provision/setup.sh           install what is missing; a second call finds nothing to do and is quick
#   provision/setup.sh --force   do every step again
#
# Three steps: packages of the distribution (only the missing ones, and none of their services is
# started), a Python environment in .venv with exactly the versions of requirements.lock, and a CRIU
# that works on the running kernel (provision/criu.sh). Needs root and a package mirror; asks nothing.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
STAMP=$VENV/.quicferry-setup
# The distribution's own: a `python3` found by PATH may be a shim that has none of its modules.
PYTHON=/usr/bin/python3

PACKAGES=(
  python3 python3-venv     # the environment is made of the distribution's Python
  ca-certificates          # pip speaks TLS
  make iproute2 iputils-ping procps util-linux kmod
  mininet bridge-utils ethtool # mininet brings mnexec
  iptables nftables        # CRIU closes the network of a frozen process with them
  tcpdump tshark wireshark-common # wireshark-common: dumpcap, mergecap, editcap
  bind9 bind9-dnsutils     # the emulated DNS host
  iperf3
  rsync                    # the engines published-… copy by it
)
# For the engine runc-cold. Docker's own packages bring another runc: apt would remove them for this one.
[ -n "$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v runc)" ] || PACKAGES+=(runc)

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  printf 'setup: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
  exit "${3:-1}"
}

force=no
case ${1:-} in
  "") ;;
  --force) force=yes ;;
  -h | --help)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *) die "unknown argument $1" "provision/setup.sh --help" 2 ;;
esac

# Everything that decides what a finished set-up looks like. The kernel is part of it: a CRIU that
# worked before an upgrade of the kernel may not work after it.
fingerprint() {
  {
    cat "$ROOT/requirements.lock" "$ROOT/pyproject.toml" "$ROOT"/provision/*.*
    echo "$ROOT"
    uname -r
    "$PYTHON" -V 2>&1
  } | sha256sum | cut -d ' ' -f 1
}

if [ "$force" = no ] && [ -e "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ]; then
  exit 0
fi

[ "$(id -u)" = 0 ] || die "installing packages needs root" "run \`sudo make setup\`" 127
command -v apt-get >/dev/null ||
  die "this machine has no apt-get" "use Debian 12 or 13 or Ubuntu 24.04, or the Vagrantfile" 127
case $(. /etc/os-release && echo "$ID-${VERSION_ID:-}") in
  debian-12 | debian-13 | ubuntu-24.04) ;;
  *) say "made for Debian 12, Debian 13 and Ubuntu 24.04; going on with $(. /etc/os-release && echo "$PRETTY_NAME")" ;;
esac

# ---- 1. packages -------------------------------------------------------------------------------

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
missing=()
for package in "${PACKAGES[@]}"; do
  state=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done

POLICY=/usr/sbin/policy-rc.d
own_policy=no
restore_policy() { if [ "$own_policy" = yes ]; then rm -f "$POLICY"; fi; }
LOG=$(mktemp "${TMPDIR:-/tmp}/quicferry-setup.XXXXXX")
trap 'restore_policy; rm -f "$LOG"' EXIT
apt() { apt-get --quiet -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null >"$LOG" 2>&1; }
install_packages() {
  apt install --yes --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}"
}

if [ ${#missing[@]} -gt 0 ]; then
  say "installing with apt, a minute or so: ${missing[*]}"
  # A DNS server or a switch that the package would start has no business on the host: every run
  # starts its own, in its own namespaces. This script keeps it from being started now; what would
  # start with the next boot is disabled below.
  if [ ! -e "$POLICY" ]; then
    own_policy=yes
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
  fi
  # dumpcap stays for root alone; the package would ask by a dialogue
  echo 'wireshark-common wireshark-common/install-setuid boolean false' | debconf-set-selections
  if ! install_packages; then
    say "that failed; once more with fresh package lists"
    if ! apt update || ! install_packages; then
      cat "$LOG" >&2
      die "apt-get could not install the packages" \
        "its messages are above; on Ubuntu the component \`universe\` must be enabled"
    fi
  fi
  restore_policy
  own_policy=no
  if [ -d /run/systemd/system ]; then
    case " ${missing[*]} " in
      *" bind9 "*) # the other packages have no unit that is enabled on installation
        say "disabling named.service, which came with bind9: runs start their own named"
        systemctl disable --quiet named.service || true
        ;;
    esac
  fi
else
  say "all packages are installed"
fi

# ---- 2. the Python environment -----------------------------------------------------------------

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$PYTHON is $("$PYTHON" -V 2>&1), needed is Python 3.11 or later" "use Debian 12 or later" 127

# An environment of another Python, or of a checkout that was moved, is of no use.
if [ "$force" = yes ] || ! "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.prefix != sys.argv[1])' \
  "$VENV" 2>/dev/null || [ "$("$VENV/bin/python" -V 2>&1)" != "$("$PYTHON" -V 2>&1)" ]; then
  say "making a Python environment in .venv"
  rm -rf "$VENV"
  "$PYTHON" -m venv "$VENV"
fi
rm -f "$STAMP"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@" </dev/null >&2; }
say "installing what requirements.lock names"
pip install -qq --require-hashes --requirement "$ROOT/requirements.lock" ||
  die "pip could not install what requirements.lock names" "its message is above; is there a network?"
pip install -qq --no-deps --no-build-isolation --editable "$ROOT" ||
  die "pip could not install the project itself" "its message is above"
say "compiling the cable, a quarter of a minute, unless it is"
"$VENV/bin/python" -m quicferry.emulation.links.cable.native </dev/null >&2 ||
  die "the cable could not be compiled" "its message is above"

# ---- 3. CRIU -----------------------------------------------------------------------------------

criu_arguments=()
if [ "$force" = yes ]; then criu_arguments=(--force); fi
if "$ROOT/provision/criu.sh" "${criu_arguments[@]}" </dev/null; then
  fingerprint >"$STAMP"
  say "ready: bin/quicferry doctor shows what this machine can do"
else
  # Without the stamp the next call tries again: a mirror that was away may be back.
  say "ready but for CRIU: the engine handoff works without it, those of CRIU and runc do not"
fi
