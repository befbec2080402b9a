#!/bin/sh
# Installs what the tests and the demo need on a fresh Debian or Alpine, and makes the virtual environment $1.
# Does nothing that is done already, so it costs a second when run again.
set -eu

venv=$1

have() {
	command -v "$1" >/dev/null 2>&1
}

missing() {
	for tool in mkfs.btrfs btrfs losetup strace shellcheck busybox openssl nsenter python3; do
		have "$tool" || return 0
	done
	python3 -c 'import venv, ensurepip' 2>/dev/null || return 0
	busybox_is_static || return 0
	return 1
}

# The small roots of the tests hold one program that needs no library.
busybox_is_static() {
	[ -x /bin/busybox.static ] || { have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }
}

install_packages() {
	if have apt-get; then
		echo "setup: installing system packages with apt-get" >&2
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq btrfs-progs util-linux strace shellcheck \
			busybox-static openssl python3 python3-venv fuse3 >/dev/null
	elif have apk; then
		echo "setup: installing system packages with apk" >&2
		apk add -q btrfs-progs util-linux losetup strace shellcheck busybox-static openssl python3 py3-pip
	else
		echo "setup: neither apt-get nor apk is here; install btrfs-progs, util-linux, strace, shellcheck," \
			"a static busybox, openssl and python3 by hand" >&2
		exit 1
	fi
}

if [ "$(id -u)" != 0 ]; then
	echo "setup: the tests and the demo attach loop devices and mount btrfs: run make as root" >&2
	exit 1
fi
if missing; then
	install_packages
fi
if ! [ -x "$venv/bin/python" ] || ! cmp -s pyproject.toml "$venv/pyproject.toml"; then
	echo "setup: making the virtual environment $venv" >&2
	python3 -m venv "$venv"
	"$venv/bin/python" -c 'import tomllib
p = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(p["dependencies"] + p["optional-dependencies"]["test"]))' > "$venv/requirements.txt"
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/requirements.txt"
	cp pyproject.toml "$venv/pyproject.toml"
fi
