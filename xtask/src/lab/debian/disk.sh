# Makes a disk of Debian packages: unpacked into a tree, the tree furnished and packed as ext4.
# Arguments: a scratch directory with the tree of files to add in `files` and the script of what to furnish in `furnish.sh`, the
# unpacked kernel package, the file to make, then the packages, which apt completes with what they depend on.
set -eu
scratch=$1 kernel=$2 disk=$3
shift 3
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
cp -a "$scratch/files/." "$root/"
cat > "$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
END
cat > "$root/etc/group" <<'END'
root:x:0:
nogroup:x:65534:
END
cp "$root/usr/share/libc-bin/nsswitch.conf" "$root/etc/nsswitch.conf"
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/root"
rm -rf "$root/var/run" "$root/var/lock"
ln -s /run "$root/var/run"
ln -s /run/lock "$root/var/lock"
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
chroot "$root" /sbin/ldconfig
for release in "$root"/usr/lib/modules/*; do
    chroot "$root" /sbin/depmod "${release##*/}"
done
echo "furnishing"
. "$scratch/furnish.sh"

# Sparse: what is written at run time goes to a layer of QEMU's, so the room is for the tree alone and a little.
echo "packing the disk"
used_kib=$(du --summarize --block-size=1K "$root" | cut -f1)
truncate --size "$((used_kib * 5 / 4 + 512 * 1024))K" "$disk"
mkfs.ext4 -q -O '^has_journal' -d "$root" "$disk"
