#!/bin/bash
# The first user program of a full lab's host, instead of an init system, whose start would take longer than all else under
# emulation. Sets the machine up as a stock Debian is: cgroup version 2 alone, kvm, tracefs, bpffs. Then does what it is told
# over a virtio port.
# From the kernel's command line: gnomon.name=NAME and, where there is a segment of several hosts, gnomon.address=ADDRESS.
export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for directory in /dev/shm /run /tmp; do mount -t tmpfs tmpfs "$directory"; done
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
exec < /dev/null

name=host address=
for word in $(cat /proc/cmdline); do
    case $word in
        gnomon.name=*) name=${word#*=} ;;
        gnomon.address=*) address=${word#*=} ;;
    esac
done
echo "$name" > /proc/sys/kernel/hostname

# As with systemd, nobody lives in the root, and it hands everything down.
mkdir /sys/fs/cgroup/init /sys/fs/cgroup/system
echo $$ > /sys/fs/cgroup/init/cgroup.procs
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done

modprobe -a virtio_net tun
# With nested paging a part of the guests hangs while booting: QEMU's emulation (seen with 7.2) interrupts them where they have interrupts disabled.
modprobe kvm_amd npt=0
ip link set lo up
# QEMU's user network: 10.0.2.2 is the loopback address of the machine outside.
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
if [ -n "$address" ]; then
    ip addr add "$address/24" dev eth1
    ip link set eth1 up
fi

# What changes from run to run comes as a tar file on a second disk.
tar -xf /dev/vdb -C /lab || echo "lab-init failed: the programs cannot be unpacked"

port=
for directory in /sys/class/virtio-ports/*; do
    [ "$(cat "$directory/name")" = gnomon.control ] && port=/dev/${directory##*/}
done
mkdir -p /run/control
cd /run/control || exit
exec 3<> "$port"
echo "lab-host $name is up after $(cut -d' ' -f1 /proc/uptime) s"
# A request is `run ID PATIENCE_S LENGTH` and so many bytes of a script, an answer `done ID STATUS OUT ERR` and so many bytes
# of what it wrote to each. A read ends early while nobody is connected outside.
while :; do
    read -r word id patience_s length <&3 || { sleep 0.2; continue; }
    [ "$word" = run ] || continue
    head -c "$length" <&3 > script
    timeout --kill-after=1 "$patience_s" bash -eu script < /dev/null > out 2> err 3>&-
    status=$?
    { echo "done $id $status $(stat -c %s out) $(stat -c %s err)"; cat out err; } >&3
done
