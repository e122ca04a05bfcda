# Makes the disk of a full lab's host: Debian packages unpacked into a tree, the tree packed as ext4.
# Arguments: an empty scratch directory, the unpacked kernel package, the host's first program, the file to make, then the
# packages, which apt completes with what they depend on.
set -eu
scratch=$1 kernel=$2 init=$3 disk=$4
shift 4
root=$scratch/root
mkdir -p "$root" "$scratch/archives/partial"
: > "$scratch/status"

# An empty list of installed packages and a cache of its own: apt resolves everything anew and leaves the machine's alone.
echo "fetching packages"
apt-get -o Dir::State::status="$scratch/status" -o Dir::Cache="$scratch" -o APT::Install-Recommends=false \
    -o APT::Sandbox::User=root -o Debug::NoLocking=1 --quiet --yes --download-only install "$@"

# Unpacked, not installed: no maintainer script runs, so what those would have made is made below.
for directory in bin sbin lib lib64; do
    mkdir -p "$root/usr/$directory"
    ln -s "usr/$directory" "$root/$directory"
done
for package in "$scratch"/archives/*.deb; do
    echo "unpacking ${package##*/}"
    dpkg-deb --fsys-tarfile "$package" | tar --extract --directory "$root" --keep-directory-symlink \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
        --exclude='./usr/share/iso-codes/*' --exclude='./usr/share/xml/iso-codes/*'
done
cp -a "$kernel/lib/modules" "$root/usr/lib/"
install -m 755 "$init" "$root/usr/sbin/gnomon-host"
cat > "$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin
END
cat > "$root/etc/group" <<'END'
root:x:0:
kvm:x:104:libvirt-qemu
nogroup:x:65534:
libvirt-qemu:x:64055:
END
cp "$root/usr/share/libc-bin/nsswitch.conf" "$root/etc/nsswitch.conf"
mkdir -p "$root/lab" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/root"
rm -rf "$root/var/run" "$root/var/lock"
ln -s /run "$root/var/run"
ln -s /run/lock "$root/var/lock"
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
chroot "$root" /sbin/ldconfig
for release in "$root"/usr/lib/modules/*; do
    chroot "$root" /sbin/depmod "${release##*/}"
done

# Sparse: what is written at run time goes to a temporary layer of QEMU's, so the room is for the tree alone and a little.
echo "packing the disk"
used_kib=$(du --summarize --block-size=1K "$root" | cut -f1)
truncate --size "$((used_kib * 5 / 4 + 512 * 1024))K" "$disk"
mkfs.ext4 -q -O '^has_journal' -d "$root" "$disk"
