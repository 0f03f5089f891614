#!/bin/bash
# Starts the machine of the Vagrantfile by Vagrant and libvirt, from a box made here, and moves a server in it.
#
#   provision/vm/vagrant_test.sh        as root; the disk is that of provision/vm/image.sh
#   provision/vm/vagrant_test.sh --box  make the box, say where it is, and start nothing
#
# The box is the disk of `make vm-test` with a Vagrantfile of its own: libvirt starts the kernel that lies
# beside the disk, and systemd takes the network (`ip=dhcp`) and the key of root from the kernel's command line.
# libvirt, its bridge and its name server run in a private root and end with it. A step that did not succeed in
# its time, and one that could not be tried, is a failure. What the steps printed is in .cache/vagrant.
# Exit status 0 when all of it worked, 1 when a step did not, 127 when something is not installed.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ROOT=$(cd "$HERE/../.." && pwd -P)
PLACE=${QUICFERRY_VAGRANT_CACHE:-$ROOT/.cache/vagrant}
NAME=quicferry/local
#: how many times longer than on a real processor a step may take; when the machine is up and is slower, more
SLOWER=${QUICFERRY_VAGRANT_SLOWER:-30}

WHO=vagrant-test
# shellcheck source=provision/vm/messages.sh
. "$HERE/messages.sh"

make_box() {
  local image key arguments credential
  image=$("$HERE/image.sh")
  # a box of this disk, as this script makes it
  if [ "$(cat "$PLACE/box/of" 2>/dev/null)" = "$image $(sha256sum <"$HERE/vagrant_test.sh")" ]; then return; fi
  rm -rf "$PLACE/box" "$PLACE/home"
  mkdir -p "$PLACE/box"
  ssh-keygen -q -t ed25519 -N "" -C quicferry-box -f "$PLACE/box/key"
  ln "$image/disk.qcow2" "$PLACE/box/box.img" 2>/dev/null || cp "$image/disk.qcow2" "$PLACE/box/box.img"
  cp "$image/vmlinuz" "$image/initrd.img" "$PLACE/box/"
  printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": 8}\n' >"$PLACE/box/metadata.json"
  key=$(cat "$PLACE/box/key.pub")
  credential=$(printf '%s\n' "$key" | base64 -w 0)
  arguments="root=/dev/vda rw console=ttyS0 audit=0 mitigations=off no_timer_check ip=dhcp net.ifnames=0"
  arguments+=" systemd.wants=systemd-network-generator.service systemd.wants=systemd-networkd.service"
  arguments+=" systemd.set_credential_binary=ssh.authorized_keys.root:$credential"
  # Vagrant sets a name that the machine does not answer to already by D-Bus, which is not on the disk
  credential=$(printf 'f+ /etc/hosts 0644 root root - 127.0.0.1 localhost\\n127.0.1.1 quicferry\\n\n' | base64 -w 0)
  arguments+=" systemd.set_credential_binary=tmpfiles.extra:$credential"
  cat >"$PLACE/box/Vagrantfile" <<VAGRANTFILE
# Of the box that provision/vm/vagrant_test.sh made: the disk has no boot loader, and root's key is the box's own.
Vagrant.configure("2") do |config|
  config.ssh.username = "root"
  config.ssh.private_key_path = File.expand_path("key", __dir__)
  config.ssh.insert_key = false
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.expand_path("vmlinuz", __dir__)
    libvirt.initrd = File.expand_path("initrd.img", __dir__)
    libvirt.cmd_line = "$arguments"
  end
end
VAGRANTFILE
  tar --create --file "$PLACE/quicferry.box" --directory "$PLACE/box" \
    metadata.json Vagrantfile key vmlinuz initrd.img box.img
  printf '%s' "$image $(sha256sum <"$HERE/vagrant_test.sh")" >"$PLACE/box/of"
}

# In the private root: what libvirt changes of the machine (bridges, rules, its folders) ends with it.
inside() {
  local failed=no name
  # libvirt would still know the machine of a test that was interrupted, and make no other of its name
  rm -rf "$PLACE/libvirt" "$PLACE/libvirt-etc"
  mkdir -p "$PLACE/libvirt" "$PLACE/libvirt-etc/qemu/networks"
  mount --bind "$PLACE/libvirt" /var/lib/libvirt
  mount --bind "$PLACE/libvirt-etc" /etc/libvirt
  # a host without systemd and with nothing of libvirt running: QEMU is root's, as vm_test.py's is
  printf '%s\n' 'user = "root"' 'group = "root"' 'security_driver = "none"' 'remember_owner = 0' \
    'cgroup_controllers = []' 'namespaces = []' 'stdio_handler = "file"' >/etc/libvirt/qemu.conf
  virtlogd -d
  libvirtd -d
  for _ in $(seq 100); do
    if virsh -q -c qemu:///system list >"$PLACE/libvirt.txt" 2>&1; then break; fi
    sleep 0.2
  done
  export VAGRANT_HOME=$PLACE/home VAGRANT_DOTFILE_PATH=$PLACE/dot VAGRANT_NO_COLOR=1 VAGRANT_CHECKPOINT_DISABLE=1
  export QUICFERRY_BOX=$NAME VAGRANT_DEFAULT_PROVIDER=libvirt
  [ "${QUICFERRY_VAGRANT_KVM:-}" = 1 ] || export QUICFERRY_QEMU=1
  rm -rf "$VAGRANT_DOTFILE_PATH"
  cd "$ROOT"

  try() { # name, seconds on a real processor, command
    local name=$1 limit_s=$(($2 * SLOWER)) begun=$SECONDS
    shift 2
    if [ "$failed" = up ]; then
      say "$name: FAILED, not tried: there is no machine"
    elif timeout -k 20 "$limit_s" "$@" >"$PLACE/$name.txt" 2>&1 </dev/null; then
      say "$name: ok, $((SECONDS - begun)) s"
    else
      say "$name: FAILED, $((SECONDS - begun)) s; it said last: $(tail -n 1 "$PLACE/$name.txt")"
      [ "$failed" = up ] || failed=$name
    fi
  }
  # A command whose connection is closed goes on in the machine: it is there that its time ends first.
  in_it() { # name, seconds on a real processor, command in the machine, as root
    local limit_s=$(($2 * SLOWER))
    try "$1" $(($2 + 10)) vagrant ssh -c "cd /quicferry && sudo timeout -k 20 $limit_s $3"
  }
  measure() { # how many times slower than this host the machine is, by what its own test measures
    local trial="import sys; sys.path.insert(0, 'provision/vm'); import guest_steps" here there
    here=$(python3 -c "$trial; print(guest_steps.speed_s(guest_steps.cpu_s))")
    trial="cd /quicferry && python3 -c \"$trial; print(guest_steps.speed_s(guest_steps.wall_s))\""
    there=$(timeout 900 vagrant ssh -c "$trial" </dev/null 2>"$PLACE/slower.txt" | tr -d '\r') || return 0
    there=$(python3 -c 'import sys; print(round(float(sys.argv[2]) / float(sys.argv[1])))' "$here" "$there") || return 0
    say "the machine is $there times slower than this host"
    [ "$there" -le "$SLOWER" ] || SLOWER=$there
  }
  try box 20 vagrant box add --force --name "$NAME" "$PLACE/quicferry.box"
  try up 60 vagrant up --provider libvirt
  [ "$failed" = up ] || measure
  in_it kernel 20 "bin/quicferry doctor --only netem --only criu --only criu-tracking --json"
  in_it handoff 30 "bin/quicferry run --strategy symmetric --json"
  in_it mininet 20 ".venv/bin/mn --custom topologies/two_edges.py --topo two_edges \
    --controller none --switch lxbr --test pingall 2>&1 | tee -a /dev/stderr | grep -q 'Results: 0% dropped'"
  name=$failed
  failed=no
  try destroy 20 vagrant destroy --force
  say "what they printed is in $PLACE"
  [ "$name$failed" = nono ]
}

case ${1:-} in
  "" | --box) ;;
  --inside) inside; exit ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) die "unknown argument $1" "provision/vm/vagrant_test.sh --help" 2 ;;
esac
[ "$(id -u)" = 0 ] || die "a machine of its own network needs root" "run it again as root" 127
for program in vagrant libvirtd virtlogd virsh dnsmasq qemu-system-x86_64 rsync ssh-keygen; do
  command -v "$program" >/dev/null || die "there is no $program" "make vagrant-test installs it by apt" 127
done
mkdir -p "$PLACE"
make_box
say "the box is $PLACE/quicferry.box"
[ "${1:-}" != --box ] || exit 0
cd "$ROOT"
exec .venv/bin/python -m quicferry.emulation.sandbox.private_root "$HERE/vagrant_test.sh" --inside
