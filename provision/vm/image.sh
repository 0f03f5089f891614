#!/bin/bash
# Makes the disk of a Debian virtual machine in which quicferry is installed, and prints the folder.
#
#   provision/vm/image.sh        make it if there is none for what goes into it; a second call is quick
#   provision/vm/image.sh --key  print the name that stands for what goes into it; make nothing
#
# The folder (.cache/vm/<key> in the checkout) holds disk.qcow2, vmlinuz and initrd.img: the kernel is
# given to QEMU, so that no boot loader and no loop device are needed. The key is made of everything that
# decides what is in the image, and an older image is deleted when a new one stands. What the machine does
# when it starts is told by the folder `job` that QEMU hands in (provision/vm/machine.py).
# Needs root, debootstrap, qemu-utils and a Debian mirror; about four minutes.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ROOT=$(cd "$HERE/../.." && pwd -P)
SUITE=${QUICFERRY_VM_SUITE:-trixie}
MIRROR=${QUICFERRY_DEBIAN_MIRROR:-http://deb.debian.org/debian}
CACHE=${QUICFERRY_VM_CACHE:-$ROOT/.cache/vm}
DISK_SIZE=8G
# A kernel and an init; Vagrant needs the three after them; what setup.sh installs comes by itself.
PACKAGES=systemd-sysv,udev,kmod,iproute2,ca-certificates,linux-image-amd64
PACKAGES+=,openssh-server,sudo,rsync,openvswitch-switch,python3-venv,debian-archive-keyring
# what the machine needs of the initial file system: its disk, and the folders of the host
MODULES=(virtio_pci virtio_blk virtio_net ext4 9p 9pnet_virtio)

WHO=image
# shellcheck source=provision/vm/messages.sh
. "$HERE/messages.sh"

key() {
  {
    echo "$SUITE $PACKAGES ${MODULES[*]} $DISK_SIZE"
    cat "$ROOT/requirements.lock" "$ROOT"/provision/{criu_check.py,criu.sh,setup.sh} \
      "$HERE/image.sh" "$HERE/guest.sh" "$HERE/guest.service"
  } | sha256sum | cut -c -16
}

image=$CACHE/$SUITE-$(key)
case ${1:-} in
  "") ;;
  --key) basename "$image"; exit 0 ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) die "unknown argument $1" "provision/vm/image.sh --help" 2 ;;
esac
if [ -e "$image/disk.qcow2" ]; then
  echo "$image"
  exit 0
fi

[ "$(id -u)" = 0 ] || die "making a file system needs root" "run it again as root" 127
for program in debootstrap qemu-img mke2fs; do
  command -v "$program" >/dev/null ||
    die "there is no $program" "apt-get install debootstrap qemu-utils qemu-system-x86 e2fsprogs" 127
done
mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock 9 # two at once would do the same work twice
if [ -e "$image/disk.qcow2" ]; then
  echo "$image"
  exit 0
fi

work=$(mktemp -d "$CACHE/work.XXXXXX")
tree=$work/tree
# Mounts are undone before anything is deleted: /dev and /proc of the host are below.
unmount() { for place in proc sys dev; do umount "$tree/$place" 2>/dev/null || true; done; }
clean_up() {
  unmount
  if mountpoint -q "$tree/proc" || mountpoint -q "$tree/sys" || mountpoint -q "$tree/dev"; then
    die "$tree has mounts that do not go away" "umount them, then delete $work"
  fi
  rm -rf "$work"
}
trap clean_up EXIT

say "debootstrap of Debian $SUITE, two minutes or so"
debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$tree" "$MIRROR" >"$work/log" 2>&1 ||
  { tail -n 20 "$work/log" >&2; die "debootstrap failed" "its last lines are above; is there a network?"; }

say "provision/setup.sh in it, two minutes or so"
mkdir -p "$tree/quicferry"
(cd "$ROOT" && git ls-files -z --cached --others --exclude-standard |
  tar --create --null --files-from=- --ignore-failed-read) | tar --extract --directory "$tree/quicferry"
# While packages are installed into it nothing of them may start, on the host as it were.
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod 755 "$tree/usr/sbin/policy-rc.d"
[ ! -r /etc/pip.conf ] || cp /etc/pip.conf "$tree/etc/pip.conf" # an index of its own, if the host has one
cp -L /etc/resolv.conf "$tree/etc/resolv.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
mount -t proc proc "$tree/proc"
mount -t sysfs -o ro sysfs "$tree/sys"
mount --bind /dev "$tree/dev"
chroot "$tree" /quicferry/provision/setup.sh >"$work/log" 2>&1 ||
  { tail -n 20 "$work/log" >&2; die "setup.sh failed in the image" "its last lines are above"; }
chroot "$tree" apt-get clean
# The project itself comes with each job: files of an older state of it must not be found beside those.
find "$tree/quicferry" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .cache ! -name '*.egg-info' -exec rm -rf {} +

install -m 755 "$HERE/guest.sh" "$tree/usr/local/sbin/quicferry-guest"
install -m 644 "$HERE/guest.service" "$tree/etc/systemd/system/quicferry-guest.service"
chroot "$tree" systemctl enable --quiet quicferry-guest.service
chroot "$tree" systemctl disable --quiet named.service openvswitch-switch.service 2>>"$work/log" || true
printf '%s\n' quicferry >"$tree/etc/hostname"
printf '/dev/vda / ext4 defaults 0 0\n' >"$tree/etc/fstab"
printf '%s\n' "${MODULES[@]}" >"$tree/etc/initramfs-tools/modules"
sed -i 's/^MODULES=.*/MODULES=list/' "$tree/etc/initramfs-tools/initramfs.conf"
chroot "$tree" update-initramfs -u -k all >"$work/log" 2>&1 ||
  { tail -n 20 "$work/log" >&2; die "update-initramfs failed in the image"; }
unmount
rm -f "$tree/usr/sbin/policy-rc.d"

say "the disk"
mkdir "$work/image"
cp "$tree"/boot/vmlinuz-* "$work/image/vmlinuz"
cp "$tree"/boot/initrd.img-* "$work/image/initrd.img"
chroot "$tree" dpkg-query --show --showformat '${Package} ${Version}\n' >"$work/image/packages.txt"
mke2fs -q -t ext4 -L quicferry -d "$tree" "$work/disk.raw" "$DISK_SIZE"
qemu-img convert -O qcow2 "$work/disk.raw" "$work/image/disk.qcow2"
find "$CACHE" -maxdepth 1 -type d -name "$SUITE-*" -exec rm -rf {} +
mv "$work/image" "$image"
say "made $(du -sh "$image" | cut -f 1) in $SECONDS s"
echo "$image"
