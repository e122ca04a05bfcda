# What a full lab's host has on its disk beside packages and its first program, in $root.
echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >> "$root/etc/passwd"
printf 'kvm:x:104:libvirt-qemu\nlibvirt-qemu:x:64055:\n' >> "$root/etc/group"
mkdir -p "$root/lab"
