#!/bin/busybox sh
# The first program of a guest: file systems, drivers, then the load, which is never to end.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "lab-init failed: $module cannot be inserted"
done < /modules/order
exec gnomon-lab-load
