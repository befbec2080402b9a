"""The boot menu of an adopted system, on the ESP that the old loader has, which stays the default.

What speaks against it is found before anything is made; put there it is last of all, when there is a generation to
boot. Durable when `install` returns: loader, menu and what state/boot.json says of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from apk_atomic import bootinstall, disks, esp, kernel, loaders, newmenu, nvram
from apk_atomic.adoption import Choices, Plan
from apk_atomic.bootinstall import Fallback
from apk_atomic.errors import AtomicError, CheckFailed, Interrupted, UsageError
from apk_atomic.faults import point
from apk_atomic.loaders import LoaderFiles
from apk_atomic.newmenu import Wishes
from apk_atomic.session import Work
from apk_atomic.signals import Signals


def lacks_loader(choices: Choices, signals: Signals) -> Iterator[str]:
    """What speaks against the adoption where the loader's files are not here: one sentence, or none."""
    try:
        _find_loader(choices, signals)
    except (CheckFailed, UsageError) as error:
        yield f"{error.message.removesuffix('; nothing was changed')}: {error.hint}"


def check_loader(choices: Choices, plan: Plan, fsid: str, signals: Signals) -> LoaderFiles:
    """That the loader's files and the ESP can be read, and no other system's menu is on it. Raises UsageError,
    CheckFailed, Refused."""
    found = _find_loader(choices, signals)
    with esp.opened(_esp_place(plan), signals) as target:
        bootinstall.require_own(target, found, fsid)
        return found


def install(work: Work, plan: Plan, choices: Choices, loader: LoaderFiles, image: str) -> tuple[str, tuple[str, ...]]:
    """The number of the firmware's entry, and warnings; `image` is the kernel that was proved. Raises CheckFailed: the
    generation is there then."""
    flavor = image.rpartition("/")[2].removeprefix(kernel.KERNEL_PREFIX)
    wishes = Wishes(choices.loader, flavor, plan.append, plan.resume, choices.timeout)
    try:
        found = nvram.partition(work.volume.device, work.signals)
        menu, warnings = newmenu.compose(work.volume, work.config, wishes, found.guid if found else "")
        with esp.opened(_esp_place(plan), work.signals) as target:
            done = bootinstall.install(work, target, loader, menu, fallback=Fallback.NO)
            device = target.device
        warnings = (*warnings, *done.warnings)
        if choices.nvram:
            warnings += bootinstall.register(device, loader, work.signals, first=False)
            bootinstall.confirm(work, device, loader, menu)
    except Interrupted:
        raise
    except (AtomicError, OSError) as error:
        text = error.message if isinstance(error, AtomicError) else str(error)
        raise CheckFailed(
            f"the generation is made, but not the boot menu: {text}; the old system boots as before",
            hint="apk-atomic adopt --finish may be run again",
        ) from error
    point("menu")
    return nvram.entry(device, f"{loaders.DIRECTORY}/{loader.program}", work.signals), warnings


def _find_loader(choices: Choices, signals: Signals) -> LoaderFiles:
    return loaders.find(choices.loader, [choices.refind or f"/{loaders.REFIND}"], signals)


def _esp_place(plan: Plan) -> str:
    place = plan.esp if os.path.isdir(plan.esp) else disks.find(plan.esp)
    if not place:
        raise CheckFailed(f"the ESP {plan.esp} is not here; nothing was changed", hint="--esp DEVICE")
    return place
