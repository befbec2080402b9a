#!/bin/sh
# Makes a fresh Debian or Alpine ready for the demo, the tests and the bench: system packages, kernel modules, and the
# virtual environment $1, by the interpreter $2; with `boot` as $3 also the virtual machines of the boot tests, on Debian.
# It says what it does and does nothing that is done already.
set -eu

venv=${1:?usage: setup.sh VENV [PYTHON [boot]]}
python=${2:-python3}
purpose=${3:-}

say() {
	echo "setup: $*" >&2
}

fail() {
	say "$@"
	exit 1
}

have() {
	command -v "$1" >/dev/null 2>&1
}

# What is not there, in one line; nothing when all is.
missing() {
	for tool in mkfs.btrfs btrfs losetup strace shellcheck busybox openssl nsenter \
		sfdisk wipefs mkswap mkfs.vfat mcopy zstd lz4 scdoc mandoc grub-mkimage bash zsh fish "$python"; do
		have "$tool" || printf '%s ' "$tool"
	done
	if have "$python" && ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
		printf 'venv '
	fi
	busybox_is_static || printf 'static-busybox '
	has_grub_for_efi || printf 'grub-efi '
}

# The small roots of the tests hold one program that needs no library.
busybox_is_static() {
	[ -x /bin/busybox.static ] || { have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }
}

has_grub_for_efi() {
	for modules in /usr/lib/grub/*-efi; do
		[ ! -d "$modules" ] || return 0
	done
	return 1
}

# On Debian busybox-static takes the place of busybox: the same program, without libraries.
install_packages() {
	if have apt-get; then
		say "installing with apt-get, for want of $*"
		apt-get update -qq </dev/null
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq btrfs-progs util-linux strace shellcheck \
			busybox-static openssl python3 python3-venv fuse3 fdisk dosfstools mtools zstd lz4 scdoc mandoc zsh fish \
			grub-common "grub-efi-$(dpkg --print-architecture)-bin" </dev/null >/dev/null
	elif have apk; then
		say "installing with apk, for want of $*"
		apk add -q btrfs-progs util-linux util-linux-misc losetup sfdisk wipefs blkid flock strace shellcheck busybox-static \
			openssl python3 py3-pip dosfstools mtools zstd lz4 scdoc mandoc bash zsh fish grub grub-efi
	else
		fail "$* is not here, and neither apt-get nor apk is, to install it"
	fi
}

# The boot tests take emulator, firmware, boot loader and kernel from Debian, so that they are the same everywhere.
missing_for_boots() {
	for tool in qemu-system-x86_64 grub-mkimage efibootmgr apt-get dpkg-deb; do
		have "$tool" || printf '%s ' "$tool"
	done
	for file in /usr/share/OVMF/OVMF_CODE_4M.fd /usr/share/refind/refind/drivers_x64/btrfs_x64.efi \
		/usr/lib/grub/x86_64-efi/moddep.lst; do
		[ -e "$file" ] || printf '%s ' "$file"
	done
}

install_for_boots() {
	have apt-get || fail "$* is not here: the boot tests run on Debian only"
	say "installing with apt-get, for want of $*"
	# By default refind puts itself on the ESP of the machine that it is installed on.
	echo refind refind/install_to_esp boolean false | debconf-set-selections
	apt-get update -qq </dev/null
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-x86 ovmf refind \
		grub-common grub-efi-amd64-bin efibootmgr </dev/null >/dev/null
}

load_modules() {
	[ -e /dev/loop-control ] || modprobe loop || fail "this kernel, or container, has no loop devices"
	grep -qw btrfs /proc/filesystems || modprobe btrfs || fail "this kernel has no btrfs"
}

make_environment() {
	say "making the virtual environment $venv"
	"$python" -m venv --clear "$venv"
	"$venv/bin/python" -c 'import tomllib
p = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(p["dependencies"] + p["optional-dependencies"]["test"]))' > "$venv/requirements.txt"
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/requirements.txt" </dev/null
	# Last, so that an environment that is not complete is made again.
	cp pyproject.toml "$venv/pyproject.toml"
}

[ "$(id -u)" = 0 ] || fail "loop devices and mounts are for root only: run make as root"
wanted=$(missing)
if [ -n "$wanted" ]; then
	# shellcheck disable=SC2086  # a list of words
	install_packages $wanted
	wanted=$(missing)
	[ -z "$wanted" ] || fail "still missing: $wanted"
fi
if [ "$purpose" = boot ]; then
	wanted=$(missing_for_boots)
	if [ -n "$wanted" ]; then
		# shellcheck disable=SC2086  # a list of words
		install_for_boots $wanted
		wanted=$(missing_for_boots)
		[ -z "$wanted" ] || fail "still missing: $wanted"
	fi
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" --version) is too old: 3.11 is needed"
load_modules
if ! [ -x "$venv/bin/python" ] || ! cmp -s pyproject.toml "$venv/pyproject.toml"; then
	make_environment
fi
