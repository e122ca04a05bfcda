# What maintainer scripts and an administrator would have made in the guest's tree, which is $root.
chroot "$root" systemd-sysusers
echo 6e6f6d6f6e2d4c616200000000000001 > "$root/etc/machine-id"
echo debian > "$root/etc/hostname"
chroot "$root" systemctl enable gnomon-pacer gnomon-lab-shell systemd-networkd
# Else systemd would bring catalogues and caches up to date at each boot of the fresh layer.
touch "$root/etc/.updated" "$root/var/.updated"
