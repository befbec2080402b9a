"""A volume whose first generation would boot: with a kernel, its initramfs and runlevels: set up by hand."""

from __future__ import annotations

from tests.support import btrfsctl
from tests.support.bootpackages import generator_package, kernel_package, system_package
from tests.support.packages import Package
from tests.support.world import Volume

KERNEL = "6.12.1-r0"


def install_system(volume: Volume, *packages: Package) -> None:
    """Publish a kernel, what it needs and `packages`, install all but those, seal the generation again."""
    volume.repo.publish(kernel_package(KERNEL), generator_package(), system_package(), *packages)
    btrfsctl.set_read_only(volume.tree(), False)
    guest = volume.boot(options="rw,noatime")
    guest.run(["apk", "add", "openrc", "linux-lts"], check=True)
    guest.shutdown()
    btrfsctl.set_read_only(volume.tree(), True)
