#!/bin/bash
# Moves a server in a privileged container of Podman: doctor, then one run with each of three engines.
#
#   provision/container/container_test.sh               build provision/container/Containerfile and use that
#   provision/container/container_test.sh --host-files  an empty image with this host's /usr, /etc and checkout
#                                                       read from it: nothing is built; half a minute
#   provision/container/container_test.sh --build       build it, and move nothing yet
#   provision/container/container_test.sh --built       move servers in what was built last
#   BASE=localhost/name provision/container/container_test.sh   build on another base image
#
# Where the base image cannot be pulled, debootstrap makes one. Everything of Podman (images, containers) is
# in .cache/container and stays there for the next call; delete the folder to begin anew. As root.
# Exit status 0 when all of it worked, 1 when a step did not, 127 when there is no Podman.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ROOT=$(cd "$HERE/../.." && pwd -P)
PLACE=${QUICFERRY_CONTAINER_CACHE:-$ROOT/.cache/container}
PULLED=docker.io/library/debian:trixie-slim
MADE=localhost/quicferry-base
MIRROR=${QUICFERRY_DEBIAN_MIRROR:-http://deb.debian.org/debian}

WHO=container-test
# shellcheck source=provision/vm/messages.sh
. "$ROOT/provision/vm/messages.sh"

host_files=no
only_build=no
built=no
case ${1:-} in
  "") ;;
  --build) only_build=yes ;;
  --built) built=yes ;;
  --host-files) host_files=yes ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) die "unknown argument $1" "provision/container/container_test.sh --help" 2 ;;
esac
command -v podman >/dev/null || die "there is no podman" "make container-test installs it by apt" 127
[ "$(id -u)" = 0 ] || die "a privileged container needs root" "run it again as root" 127
mkdir -p "$PLACE/tmp"
export TMPDIR=$PLACE/tmp
# Its own place, no systemd and no kernel module: it works beside another Podman, and in a container.
podman() {
  command podman --root "$PLACE/root" --runroot "$PLACE/run" --storage-driver vfs \
    --cgroup-manager cgroupfs --events-backend none "$@"
}
# Podman would ask for more open files and processes than a host without CAP_SYS_RESOURCE may give.
limits=(--ulimit "nofile=$(ulimit -Sn):$(ulimit -Hn)" --ulimit nproc=32768:32768)
trash=()
trap 'rm -rf "${trash[@]}"' EXIT

build() {
  local base=${BASE:-} tree context
  if [ -z "$base" ]; then
    if podman image exists "$MADE"; then
      base=$MADE
    elif podman image exists "$PULLED" || timeout 300 podman pull -q "$PULLED" >/dev/null 2>&1; then
      base=$PULLED
    else
      say "$PULLED cannot be pulled; debootstrap makes a base, two minutes or so"
      command -v debootstrap >/dev/null || die "there is no debootstrap" "apt-get install debootstrap" 127
      tree=$(mktemp -d "$PLACE/base.XXXXXX")
      trash+=("$tree")
      debootstrap --variant=minbase --include=ca-certificates trixie "$tree" "$MIRROR" >"$PLACE/debootstrap.txt" 2>&1 ||
        { tail -n 20 "$PLACE/debootstrap.txt" >&2; die "debootstrap failed" "its last lines are above; is there a network?"; }
      rm -rf "$tree"/var/cache/apt/archives/*.deb
      # the host's own certificates, mirror of Python packages and resolver: what it needs, its container needs
      cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
      [ ! -r /etc/pip.conf ] || cp /etc/pip.conf "$tree/etc/pip.conf"
      tar --create --directory "$tree" . | podman import -q - "$MADE" >/dev/null
      base=$MADE
    fi
  fi

  say "building on $base"
  # what git knows, and no caches: the same that a clone would have
  (cd "$ROOT" && git ls-files -z --cached --others --exclude-standard |
    tar --create --null --files-from=- --ignore-failed-read) >"$PLACE/context.tar"
  context=$(mktemp -d "$PLACE/context.XXXXXX")
  trash+=("$context")
  tar --extract --file "$PLACE/context.tar" --directory "$context"
  podman build -q --network host --isolation chroot --build-arg BASE="$base" -t quicferry \
    -f "$context/provision/container/Containerfile" "$context" >"$PLACE/build.txt" 2>&1 ||
    { tail -n 20 "$PLACE/build.txt" >&2; die "the container could not be built" "its last lines are above"; }
  image=quicferry
}

# An image of empty folders and links; what is in them is the host's.
empty() {
  local tree name
  tree=$(mktemp -d "$PLACE/empty.XXXXXX")
  trash+=("$tree")
  mkdir -p "$tree"/{usr,etc,proc,sys,dev,run,root} "$tree"/var/{tmp,lib/dpkg}
  mkdir -m 1777 "$tree/tmp"
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
  tar --create --directory "$tree" . | podman import -q - localhost/quicferry-empty >/dev/null
  image=localhost/quicferry-empty
  mounts=(-v /usr:/usr:ro -v /etc:/etc:ro -v /var/lib/dpkg:/var/lib/dpkg:ro -v "$ROOT:$ROOT" --workdir "$ROOT")
  # an environment or a cache that is a link to elsewhere is found there
  for name in .venv .cache; do
    [ ! -L "$ROOT/$name" ] || mounts+=(-v "$(dirname "$(readlink -f "$ROOT/$name")"):$(dirname "$(readlink -f "$ROOT/$name")")")
  done
}

image=
mounts=()
if [ "$built" = yes ]; then
  image=quicferry
  podman image exists "$image" || die "nothing was built yet" "leave out --built"
elif [ "$host_files" = yes ]; then
  empty
else
  build
fi
[ "$only_build" = no ] || exit 0

failed=no
try() { # name, command
  local name=$1 begun=$SECONDS
  shift
  if podman run --rm --privileged --network host "${limits[@]}" "${mounts[@]}" "$image" \
    timeout -k 10 600 "$@" >"$PLACE/$name.txt" 2>&1 </dev/null; then
    say "$name: ok, $((SECONDS - begun)) s"
  else
    say "$name: FAILED, $((SECONDS - begun)) s; it said last: $(tail -n 1 "$PLACE/$name.txt")"
    failed=yes
  fi
}
try doctor bin/quicferry doctor
for engine in handoff criu-cold runc-cold; do
  try "$engine" bin/quicferry run --runs /var/tmp/runs --engine "$engine" --strategy symmetric
done
say "what they printed is in $PLACE"
[ "$failed" = no ]
