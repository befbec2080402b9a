#!/bin/sh
# abuild.sh APORT WORK [FUNCTION…]: what abuild does with an aport, as far as these tests go, in the shell that it uses.
# It verifies and unpacks the source, calls build and package, and splits; `check` calls that instead, in what is unpacked.
# WORK/pkg/NAME is what package NAME holds, WORK/meta/NAME what abuild would write of it into .PKGINFO.
# shellcheck shell=ash
# shellcheck disable=SC2154  # what APKBUILD sets
set -eu

startdir=$1 work=$2
shift 2
cd "$startdir"
install='' install_if=''
# shellcheck source=/dev/null
. ./APKBUILD
srcdir=$work/src pkgbasedir=$work/pkg
builddir=${builddir:-$srcdir/$pkgname-$pkgver}
pkgdir=$pkgbasedir/$pkgname

die() {
	echo "abuild.sh: $*" >&2
	exit 1
}

fetch() {
	mkdir -p "$srcdir" "$work/meta"
	echo "$sha512sums" | sed '/^$/d' | sha512sum -c - >/dev/null || die "checksums"
	for archive in $source; do
		tar -xzf "$archive" -C "$srcdir"
	done
}

# Moves files and directories of the package into the subpackage.
amove() {
	cd "$pkgdir"
	for each in "$@"; do
		[ -e "$each" ] || [ -L "$each" ] || die "$subpkgname: $each is not there"
		mkdir -p "$subpkgdir/${each%/*}"
		mv "$each" "$subpkgdir/${each%/*}"
		rmdir -p "${each%/*}" 2>/dev/null || :
	done
}

optional() {
	for each in "$@"; do
		[ ! -e "$pkgdir/$each" ] || amove "$each"
	done
}

doc() {
	depends=''
	install_if="docs $pkgname=$pkgver-r$pkgrel"
	optional usr/share/doc usr/share/man
	find "$subpkgdir/usr/share/man" -type f ! -name '*.gz' -exec gzip -n -9 {} +
}

openrc() {
	depends=''
	install_if="openrc $pkgname=$pkgver-r$pkgrel"
	optional etc/conf.d etc/init.d
}

completion() {
	depends=''
	install_if="$pkgname=$pkgver-r$pkgrel $1"
	amove "$2"
}

pyc() {
	depends=''
	install_if="$pkgname=$pkgver-r$pkgrel pyc"
	cd "$pkgdir"
	# shellcheck disable=SC2046  # no space in the names
	amove $(find usr/lib/python* -type d -name __pycache__)
}

# The function of an entry of $subpackages: named in it, or the last part of the name.
split_function() {
	case $1 in
	*:*) echo "${1#*:}" ;;
	*-bash-completion) echo "completion bash-completion usr/share/bash-completion/completions" ;;
	*-zsh-completion) echo "completion zsh usr/share/zsh/site-functions" ;;
	*-fish-completion) echo "completion fish usr/share/fish/vendor_completions.d" ;;
	*) echo "${1##*-}" ;;
	esac
}

describe() {
	{
		echo "name=$1"
		echo "version=$pkgver-r$pkgrel"
		echo "description=$pkgdesc"
		# shellcheck disable=SC2086  # lists of words, by lines
		echo "depends="$depends
		# shellcheck disable=SC2086
		echo "install_if="$install_if
		for script in $install; do
			[ "${script%.*}" != "$1" ] || echo "script=${script##*.}"
		done
	} >"$work/meta/$1"
}

split() {
	subpkgname=${1%%:*}
	subpkgdir=$pkgbasedir/$subpkgname
	install_if=''
	cd "$pkgdir"
	function=$(split_function "$1")
	$function
	[ -d "$subpkgdir" ] || die "$subpkgname is empty"
	describe "$subpkgname"
}

if [ $# -gt 0 ]; then
	cd "$builddir"
	"$@"
	exit
fi
fetch
umask 022
(cd "$builddir" && build)
mkdir -p "$pkgdir"
(cd "$builddir" && package)
for each in $subpackages; do
	(split "$each")
done
describe "$pkgname"
