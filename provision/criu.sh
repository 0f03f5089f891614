#!/bin/bash
# Makes a CRIU ready that works on the running kernel, and writes a launcher for it.
#
#   provision/criu.sh            find one, or make one in the private prefix
#   provision/criu.sh --check    say whether the one that is there works; change nothing
#   provision/criu.sh --force    forget the private prefix's copy and make it anew
#
# Result: $QUICFERRY_CRIU_PREFIX/bin/criu (default .cache/criu/bin/criu in the checkout). What is
# tried, in this order, is judged by a real dump and restore of a child with an UDP socket:
#   1. the launcher that is already there;
#   2. the system's own criu;
#   3. the packages kept from an earlier success, unpacked again;
#   4. Debian sid's criu with its libraries, fetched by a private apt state directory.
# No file outside the prefix is touched (but on Ubuntu debian-archive-keyring may be installed, with
# whose keys apt checks what Debian signed). Debian 12's criu 3.17 fails on kernels from 6.14, 4.1 on
# kernels from 6.16; 4.2 works there.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PREFIX=${QUICFERRY_CRIU_PREFIX:-$HERE/../.cache/criu}
SUITE=${QUICFERRY_CRIU_SUITE:-sid}
MODE=${1:-}

say() { echo "criu: $*" >&2; }
die() { echo "criu: $1" >&2; [ $# -lt 2 ] || echo "      hint: $2" >&2; exit "${3:-1}"; }

case $MODE in
  "" | --check | --force) ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) die "unknown argument $MODE" "provision/criu.sh --help" 2 ;;
esac
[ "$(id -u)" = 0 ] || die "checkpointing processes needs root" "run it again as root" 127
[ -d "$PREFIX" ] || [ "$MODE" != --check ] || die "there is no $PREFIX" "run provision/criu.sh" 127
mkdir -p "$PREFIX"
PREFIX=$(cd "$PREFIX" && pwd)
LAUNCHER=$PREFIX/bin/criu
exec 9>"$PREFIX/lock"
flock 9 # two set-ups at once would unpack into the same place
WORK=$(mktemp -d "${TMPDIR:-/tmp}/quicferry-criu.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

# Dump and restore a child in namespaces of its own, and ask it for an answer afterwards.
works() {
  local program=$1
  [ -x "$program" ] || return 1
  timeout 60 unshare --net --mount --pid --fork --kill-child --mount-proc \
    python3 -S -E "$HERE/criu_check.py" "$program" >"$WORK/check.log" 2>&1
}

write_launcher() { # the lines of the program to start
  mkdir -p "$PREFIX/bin"
  printf '%s\n' '#!/bin/sh' "# Written by provision/criu.sh." "$1" >"$LAUNCHER.partial"
  chmod 755 "$LAUNCHER.partial"
  mv "$LAUNCHER.partial" "$LAUNCHER"
}

done_with() {
  say "$("$LAUNCHER" --version | sed -n 's/^Version: //p') works on kernel $(uname -r) ($1)"
  exit 0
}

# The prefix's programs run on the prefix's own C library, through its own dynamic linker.
unpack() { # a directory of .deb files
  rm -rf "$PREFIX/root"
  mkdir -p "$PREFIX/root"
  local deb linker program paths
  for deb in "$1"/*.deb; do dpkg-deb -x "$deb" "$PREFIX/root"; done
  # Documentation and character sets are never read by criu, and are most of the size.
  rm -rf "$PREFIX/root/usr/share" "$PREFIX"/root/usr/lib/*/gconv
  linker=$(find "$PREFIX/root" -name 'ld-linux-*.so.*' | head -n 1)
  program=$(find "$PREFIX/root" -path '*bin/criu' -type f | head -n 1)
  if [ -z "$linker" ] || [ -z "$program" ]; then return 1; fi
  paths=$(find "$PREFIX/root" -name 'lib*.so.*' -printf '%h\n' | sort -u | paste -s -d :)
  write_launcher "exec '$linker' --inhibit-cache --library-path '$paths' '$program' \"\$@\""
}

# The Debian mirror that apt itself uses, if it uses one.
mirror_of_apt() {
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null |
    awk '/\/debian\/?$/ { print; exit }' || true
}

# The file of keys that apt's own configuration names for that mirror.
keyring_of_apt() { # URI
  cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
    awk -v uri="$1" 'BEGIN { RS = "" }
      index($0, uri) && match($0, /[Ss]igned-[Bb]y[:=][ \t]*\/[^] \t\n]+/) {
        found = substr($0, RSTART, RLENGTH); sub(/^[^\/]*/, "", found); print found; exit }' || true
}

fetch() { # into $WORK/debs
  local uri keyring apt state=$WORK/apt
  uri=${QUICFERRY_DEBIAN_MIRROR:-$(mirror_of_apt)}
  uri=${uri:-http://deb.debian.org/debian}
  keyring=$(keyring_of_apt "$uri")
  if [ ! -r "${keyring:-}" ]; then
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ ! -r "$keyring" ]; then
      say "installing debian-archive-keyring: apt checks with it what Debian signed"
      DEBIAN_FRONTEND=noninteractive apt-get install -y -q debian-archive-keyring >"$WORK/keyring.log" 2>&1 ||
        { cat "$WORK/keyring.log" >&2; die "debian-archive-keyring cannot be installed" "apt-get update, then run this again"; }
    fi
  fi
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$WORK/debs"
  : >"$state/status"
  echo "deb [signed-by=$keyring] $uri $SUITE main" >"$state/sources.list"
  apt=(apt-get -q -y
    -o "Dir::State=$state" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache"
    -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Acquire::Languages=none
    -o Acquire::Retries=3 -o APT::Update::Error-Mode=any)
  say "reading the package list of $SUITE from $uri"
  update() { "${apt[@]}" update >"$WORK/update.log" 2>&1; }
  if ! update && grep -q 'Release file .* is expired' "$WORK/update.log"; then
    say "the list is older than it says it may be (a snapshot, or a mirror that lags): apt checks its signature all the same"
    apt+=(-o Acquire::Check-Valid-Until=false)
    update || true
  fi
  if [ -z "$(find "$state/lists" -name '*Packages*' -print -quit)" ]; then
    cat "$WORK/update.log" >&2
    die "the package list of $uri $SUITE cannot be read" \
      "check the network, or name another mirror in QUICFERRY_DEBIAN_MIRROR"
  fi
  # With an empty status file apt itself finds every library that criu needs, whatever sid calls it today.
  "${apt[@]}" install --download-only criu >"$WORK/download.log" 2>&1 ||
    { cat "$WORK/download.log" >&2; die "criu of $SUITE cannot be fetched: the suite has moved or is being rebuilt" \
      "try again in a few hours, or name another suite or snapshot: QUICFERRY_CRIU_SUITE, QUICFERRY_DEBIAN_MIRROR=http://snapshot.debian.org/archive/debian/YYYYMMDDT000000Z"; }
  mv "$state"/cache/archives/*.deb "$WORK/debs/"
}

[ "$MODE" != --force ] || rm -rf "${PREFIX:?}"/{bin,root,debs}

if works "$LAUNCHER"; then done_with "already there: $LAUNCHER"; fi
if [ "$MODE" = --check ]; then
  [ ! -e "$LAUNCHER" ] || tail -n 5 "$WORK/check.log" >&2
  die "no working criu in $PREFIX" "run provision/criu.sh" 127
fi

for system in /usr/sbin/criu /usr/local/sbin/criu /usr/bin/criu /usr/local/bin/criu; do
  [ -x "$system" ] || continue
  if works "$system"; then
    write_launcher "exec '$system' \"\$@\""
    done_with "the system's own, $system"
  fi
  say "the system's $system does not work on kernel $(uname -r): $(tail -n 1 "$WORK/check.log")"
done

if compgen -G "$PREFIX/debs/*.deb" >/dev/null; then
  if unpack "$PREFIX/debs" && works "$LAUNCHER"; then done_with "the packages kept in $PREFIX/debs"; fi
  say "the packages kept in $PREFIX/debs do not work any more"
fi

fetch
unpack "$WORK/debs" || die "the packages of $SUITE hold no criu" "see $WORK/download.log"
if ! works "$LAUNCHER"; then
  tail -n 20 "$WORK/check.log" >&2
  die "$("$LAUNCHER" --version 2>&1 | head -n 1) of $SUITE does not work on kernel $(uname -r)" \
    "the hand-off engine needs no CRIU; for CRIU use another kernel or QUICFERRY_CRIU_SUITE" 127
fi
# Only what worked is kept: when sid has moved on, this is what a new checkout state is made of.
rm -rf "$PREFIX/debs"
mv "$WORK/debs" "$PREFIX/debs"
done_with "Debian $SUITE, in $PREFIX"
