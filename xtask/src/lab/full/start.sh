#!/bin/busybox sh
# The first program of a full lab's host: the drivers of its disk, then over to what is there.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "lab-init failed: $module cannot be inserted"
done < /modules/order
mkdir /disk
mount -t ext4 -o rw,noatime /dev/vda /disk || echo "lab-init failed: the disk cannot be mounted"
umount /proc /sys
mount --move /dev /disk/dev
exec switch_root /disk /usr/sbin/gnomon-host
