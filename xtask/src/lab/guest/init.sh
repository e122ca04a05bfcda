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
    # gnomon.serve=7777: the guest answers there.
    gnomon.serve=*)
        httpd -p "${word#*=}" -h /sys || echo "lab-init failed: it does not serve"
        ;;
    # gnomon.swap=vda: the guest swaps to that disk.
    gnomon.swap=*)
        disk=/dev/${word#*=}
        mkswap "$disk" > /dev/null && swapon "$disk" || echo "lab-init failed: no swap"
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
    # gnomon.numbers=vda: numbers are written to that disk, each into 4 KiB of its own and onto the console once the disk has it. Their places are
    # used again after 4096 of them.
    gnomon.numbers=*)
        disk=/dev/${word#*=} number=0
        while sleep 0.05; do
            number=$((number + 1))
            printf '%-4095d\n' $number | dd of="$disk" bs=4096 iflag=fullblock seek=$((number % 4096)) conv=notrunc,fsync 2> /dev/null &&
                echo "lab-disk $number"
        done &
        ;;
    # gnomon.count: the guest writes 1, 2, 3, … to its first disk, each number to a sector of its own counted from the beginning, then to one counted
    # from the end, and the next when both are on the disk. It says what it found there at first, and after each number when that was, in seconds.
    gnomon.count)
        (
            sectors=$(cat /sys/block/vda/size) n=0
            echo "lab-count found: $(dd if=/dev/vda bs=512 skip=1 count=1 2> /dev/null | tr -d ' \0')"
            while n=$((n + 1)); do
                printf '%-512s' "count $n" > /count
                dd if=/count of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2> /dev/null
                dd if=/count of=/dev/vda bs=512 seek=$((sectors - n)) conv=notrunc,fsync 2> /dev/null
                read -r up _ < /proc/uptime
                echo "lab-count $n at $up."
                usleep 40000
            done
        ) &
        ;;
    # gnomon.pacer: a shadow's pacer is there. In the lab's own guests it runs beside the load, and with a shell for the lab: where nobody is
    # connected that ends at once, and is started again. In a shadow it takes the load's place: nobody has work for a copy.
    gnomon.pacer)
        ip link set eth0 up 2> /dev/null
        scratch=/dev/vda shadow=
        for disk in /sys/block/vd*; do
            [ "$(cat "$disk/serial" 2> /dev/null)" = gnomon-scratch ] && scratch=/dev/${disk##*/}
        done
        for port in /sys/class/virtio-ports/*; do
            case $(cat "$port/name" 2> /dev/null) in
            org.gnomon.lab.0) lab=/dev/${port##*/} ;;
            org.gnomon.pacer.0) shadow=1 ;;
            esac
        done
        if [ "$lab" ]; then
            (gnomon-pacer --scratch "$scratch"; echo "gnomon-pacer ended with $?") &
            (while :; do sh <> "$lab" >&0 2>&1; sleep 1; done) &
        elif [ "$shadow" ]; then
            echo "lab-shadow: paced"
            while :; do gnomon-pacer --scratch "$scratch"; echo "gnomon-pacer ended with $?"; sleep 1; done
        fi
        ;;
    esac
done
exec gnomon-lab-load
