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
# gnomon.address=10.88.0.2/24 on the kernel's command line is for the first network interface.
for word in $(cat /proc/cmdline); do
    case $word in
    gnomon.address=*)
        ip link set eth0 up && ip address add "${word#*=}" dev eth0 || echo "lab-init failed: no address"
        ;;
    # gnomon.reach=ADDRESS:PORT,... is what the guest tries to reach, again and again, over its first network interface.
    gnomon.reach=*)
        ip route add default dev eth0
        while sleep 2; do
            for place in $(echo "${word#*=}" | tr , ' '); do
                address=${place%:*} said=
                arping -q -f -c 1 -w 1 -I eth0 "$address" && said="$said arp"
                ping -q -c 1 -W 1 "$address" >/dev/null 2>&1 && said="$said ping"
                nc -w 1 "$address" "${place#*:}" </dev/null >/dev/null 2>&1 && said="$said tcp"
                echo "lab-reach $address:$said."
            done
        done &
        ;;
    gnomon.pacer)
        # A shadow's pacer beside the load, and a shell for the lab: where nobody is connected it ends at once, and is started again.
        ip link set eth0 up 2> /dev/null
        (gnomon-pacer --scratch /dev/vda; echo "gnomon-pacer ended with $?") &
        for port in /sys/class/virtio-ports/*; do
            if [ "$(cat "$port/name")" = org.gnomon.lab.0 ]; then
                (while :; do sh <> "/dev/${port##*/}" >&0 2>&1; sleep 1; done) &
            fi
        done
        ;;
    esac
done
exec gnomon-lab-load
