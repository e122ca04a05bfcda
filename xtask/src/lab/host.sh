# Turns fresh namespaces into a lab host. Runs as the host's anchor, inside its cgroups and namespaces.
# Arguments: the host's directory, its name, then KIND=MOUNT_POINT of each cgroup hierarchy: cgroup2 or a list of controllers.
dir=$1 name=$2
shift 2

echo "$name" > /proc/sys/kernel/hostname
ip link set lo up

# /run is the host's own: no D-Bus, so libvirt cannot reach the machine's systemd and register guests there.
mount -t tmpfs -o mode=755 run /run
# /etc and /var are the machine's, with a layer of the host's own on top.
for tree in etc var; do
    mkdir -p /run/layer/$tree /run/layer/work-$tree
    mount -t overlay -o lowerdir=/$tree,upperdir=/run/layer/$tree,workdir=/run/layer/work-$tree "lab-$tree" /$tree
done
mkdir -p /etc/libvirt /var/cache/libvirt /var/log/libvirt
cp "$dir/libvirtd.conf" "$dir/qemu.conf" /etc/libvirt/
cat "$dir/hosts" > /etc/hosts
mount --bind "$dir/cache" /var/cache/libvirt
mount --bind "$dir/log" /var/log/libvirt
# Debian's libvirt is built for this user and refuses to start where the name does not resolve, whatever qemu.conf says.
# Only the layer is written to.
getent passwd libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >> /etc/passwd
getent group libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:' >> /etc/group

# The cgroup namespace makes this host's groups the roots of new mounts. libvirt takes the last cgroup mount in
# /proc/mounts, so the machine's own mounts must not be visible anywhere else.
while read -r _ point kind _; do
    case $kind in cgroup | cgroup2) echo "$point" ;; esac
done < /proc/self/mounts > /run/cgroup-mounts
while read -r point; do umount -l "$point"; done < /run/cgroup-mounts
# A sysfs of this network namespace: /sys/class/net shows this host's interfaces.
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
for hierarchy in "$@"; do
    kind=${hierarchy%%=*} point=${hierarchy#*=}
    mkdir -p "$point"
    case $kind in
        cgroup2) mount -t cgroup2 cgroup2 "$point" ;;
        *) mount -t cgroup -o "$kind" cgroup "$point" ;;
    esac
done
# As systemd does on a real host; a kernel without them loses the probes that need them, not the host.
mount -t bpf bpf /sys/fs/bpf 2>/dev/null || true
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true
