#!/bin/busybox sh
# The first program of a machine that boots a disk of the lab's: the drivers of that disk, then over to what is there, which is init unless the
# kernel's command line names another (init=PATH).
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
next=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        init=*) next=${word#*=} ;;
    esac
done
umount /proc /sys
mount --move /dev /disk/dev
exec switch_root /disk "$next"
