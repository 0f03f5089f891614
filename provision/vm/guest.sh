#!/bin/bash
# In the virtual machine: takes the project and the job from the host, does it, and powers off.
#
# The host's folder `job` has project.tar (the checkout), run.sh (what to do) and results/ (what it left).
# The project is unpacked here: a run writes, and 9p is slow. The status of run.sh stands in results/status; where
# it is missing, the machine did not come to its end.
set -uo pipefail
mkdir -p /job
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 job /job || { poweroff -f; exit 1; }
tar --extract --no-same-owner --file /job/project.tar --directory /quicferry
ip link set lo up
cd /quicferry || exit 1
export HOME=/root CI=true
bash /job/run.sh >/job/results/output.txt 2>&1 </dev/null
status=$?
cp -a /quicferry/runs /job/results/ 2>/dev/null
journalctl -k -b --no-pager >/job/results/dmesg.txt
echo "$status" >/job/results/status.partial
mv /job/results/status.partial /job/results/status
sync
poweroff -f
