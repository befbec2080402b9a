#!/bin/sh
# What Alpine's setup-disk makes of a partition with ROOTFS=btrfs on a machine with UEFI: a root at the top level,
# etc/fstab as a dump of what is mounted, GRUB with its menu in /boot/grub.
#
#     setup-disk.sh PARTITION REPOSITORY ESP_UUID
#
# Needs $APK, and a mount namespace of its own. Nothing of apk-atomic's takes part, but that it is installed.
set -eu

partition=$1
repository=$2
esp=$3
mnt=$(mktemp -d)

mkfs.btrfs -q "$partition" 2>/dev/null
mount -t btrfs "$partition" "$mnt"
uuid=$(blkid -o value -s UUID "$partition")

"$APK" -X "$repository" -U --allow-untrusted -p "$mnt" --initdb add alpine-base
mount -o bind /dev "$mnt/dev"
mount -t proc none "$mnt/proc"
mkdir -p "$mnt/var/cache/repo" "$mnt/var/cache/apk" "$mnt/boot/efi" "$mnt/boot/grub" "$mnt/media/cdrom"
cp -r "$repository/." "$mnt/var/cache/repo"
chroot "$mnt" /bin/sh -eu <<CHROOT
echo /var/cache/repo > /etc/apk/repositories
apk add btrfs-progs mkinitfs
apk add linux-lts apk-atomic refind efibootmgr
CHROOT
umount "$mnt/dev" "$mnt/proc"

cat >"$mnt/etc/fstab" <<FSTAB
UUID=$uuid	/	btrfs	rw,relatime,space_cache=v2,subvolid=5,subvol=/ 0 1
UUID=$esp	/boot/efi	vfat	rw,relatime,fmask=0022,dmask=0022,errors=remount-ro 0 2
/dev/cdrom	/media/cdrom	iso9660	noauto,ro 0 0
FSTAB
cat >"$mnt/boot/grub/grub.cfg" <<GRUB
set timeout=1
menuentry "Alpine, with Linux lts" {
	linux /boot/vmlinuz-lts root=UUID=$uuid modules=sd-mod,usb-storage,btrfs quiet rootfstype=btrfs console=ttyS0
	initrd /boot/initramfs-lts
}
GRUB
umount "$mnt"
rmdir "$mnt"
echo "$uuid"
