#!/bin/sh
# What the Alpine wiki's page "Immutable root with atomic upgrades" has one type by hand on a partition, in its order:
#
#     wiki.sh PARTITION REPOSITORY MOUNT_OPTIONS
#
# Needs $APK, and a mount namespace of its own. Nothing of apk-atomic's takes part.
set -eu

partition=$1
repository=$2
options=$3
mnt=$(mktemp -d)
name() {
	echo "$(date -u +%Y%m%d%H%M%S)$(tr -dc 'a-zA-Z' </dev/urandom | head -c 8)"
}

mkfs.btrfs -q "$partition" 2>/dev/null
mount -t btrfs -o "$options" "$partition" "$mnt"

# File system structure
mkdir "$mnt/next" "$mnt/commons" "$mnt/snapshots" "$mnt/links"
for common in @home @var@cache @var@log; do
	btrfs -q subvolume create "$mnt/commons/$common"
done
snapshots=$(name)
mkdir "$mnt/snapshots/$snapshots"
btrfs -q subvolume create "$mnt/snapshots/$snapshots/@"
links=$(name)
mkdir "$mnt/links/$links"
for slot in 0 1 2 3; do
	ln -s "../../snapshots/$snapshots" "$mnt/links/$links/$slot"
done
ln -s "./links/$links" "$mnt/current"

# fstab
uuid=$(blkid -o value -s UUID "$partition")
cat >"$mnt/fstab" <<FSTAB
UUID=$uuid / btrfs subvol=CURRENT_SNAPSHOTS_PATH/@,ro,$options 0 0
UUID=$uuid /home btrfs subvol=/commons/@home,rw,$options 0 0
UUID=$uuid /var/cache btrfs subvol=/commons/@var@cache,rw,$options 0 0
UUID=$uuid /var/log btrfs subvol=/commons/@var@log,rw,$options 0 0
tmpfs /tmp tmpfs mode=1777,noatime,nosuid,nodev 0 0
FSTAB

# Base system
snp=$mnt/snapshots/$snapshots/@
"$APK" -X "$repository" -U --allow-untrusted -p "$snp" --initdb add alpine-base
mount -o bind /dev "$snp/dev"
mount -t proc none "$snp/proc"
mount -t sysfs sys "$snp/sys"
sed "s#CURRENT_SNAPSHOTS_PATH#/snapshots/$snapshots#g" "$mnt/fstab" >"$snp/etc/fstab"
for common in home var/cache var/log; do
	mount -t btrfs -o "$options,subvol=/commons/@$(echo "$common" | tr / @)" "$partition" "$snp/$common"
done
mkdir "$snp/var/cache/repo" "$snp/var/cache/apk"
cp -r "$repository/." "$snp/var/cache/repo"
chroot "$snp" /bin/sh -eu <<CHROOT
echo /var/cache/repo > /etc/apk/repositories
apk add btrfs-progs mkinitfs
apk add linux-lts apk-atomic
CHROOT
umount -R "$snp/dev" "$snp/proc" "$snp/sys" "$snp/home" "$snp/var/cache" "$snp/var/log"
btrfs property set -ts "$snp" ro true
umount "$mnt"
rmdir "$mnt"
