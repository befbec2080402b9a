"""The boot menu's text, and the values that come back from state/boot.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apk_atomic import bootmenu
from apk_atomic.bootmenu import Loader, Menu
from apk_atomic.errors import UsageError

UUID = "0b1e5f6a-1111-2222-3333-444455556666"
MENU = Menu(UUID, "5F2C8B9A-0000-4000-8000-1234567890AB", "boot/vmlinuz-lts", "boot/initramfs-lts")


SHOWN = Menu(
    "01234567-89ab-cdef-0123-456789abcdef", "ROOT", "boot/vmlinuz-lts", "boot/initramfs-lts", ("boot/intel-ucode.img",)
)


@pytest.mark.parametrize("name", ["refind.conf", "grub.cfg"])
def test_examples_are_what_is_rendered(name: str) -> None:
    loader = {"refind.conf": Loader.REFIND, "grub.cfg": Loader.GRUB}[name]
    text = (Path(__file__).parent.parent / "config" / name).read_text()
    assert text == bootmenu.render(replace(SHOWN, loader=loader))


def words_of(text: str, keyword: str) -> list[str]:
    lines = map(str.strip, text.splitlines())
    return [line.removeprefix(keyword).strip() for line in lines if line.startswith(keyword)]


def test_refind_has_an_entry_and_a_submenu_entry_for_each_slot() -> None:
    text = bootmenu.render(MENU)
    assert words_of(text, "menuentry ") == ['"Alpine Linux" {']
    assert len(words_of(text, "submenuentry ")) == MENU.slots
    slots = (0, 0, 1, 2, 3)  # the entry itself is slot 0
    assert words_of(text, "loader ") == [f"/current/{slot}/@/boot/vmlinuz-lts" for slot in slots]
    assert words_of(text, "initrd ") == [f"/current/{slot}/@/boot/initramfs-lts" for slot in slots]
    for line, slot in zip(words_of(text, "options "), slots, strict=True):
        assert line == (
            f'"root=UUID={UUID} rootfstype=btrfs rootflags=subvol=/current/{slot}/@,ro,noatime panic=10"'
        )
    assert text.count("{") == text.count("}")


def test_refind_boots_slot_0_whatever_was_booted_last_and_shows_nothing_else() -> None:
    lines = bootmenu.render(MENU).splitlines()
    assert {"default_selection 1", "scanfor manual", "timeout 5", "use_nvram false"} <= set(lines)
    assert f'    volume "{MENU.volume}"' in lines


def test_refind_loads_microcode_before_the_initramfs() -> None:
    text = bootmenu.render(replace(MENU, microcode=("boot/intel-ucode.img",)))
    assert words_of(text, "options ")[2].endswith(' initrd=\\current\\1\\@\\boot\\intel-ucode.img"')


def test_resume_and_further_words_come_with_every_slot() -> None:
    menu = replace(MENU, resume="UUID=abcd", append="quiet console=ttyS0", slots=2)
    for loader in Loader:
        text = bootmenu.render(replace(menu, loader=loader))
        assert text.count(" resume=UUID=abcd panic=10 quiet console=ttyS0") == (3 if loader is Loader.REFIND else 2)


def test_quotes_of_an_option_survive() -> None:
    """rEFInd wants them doubled; GRUB puts a word with spaces into quotes by itself."""
    menu = replace(MENU, append='dyndbg="file a.c  +p" quiet', slots=1)
    assert 'panic=10 dyndbg=""file a.c  +p"" quiet"' in bootmenu.render(menu)
    assert "panic=10 'dyndbg=file a.c  +p' quiet\n" in bootmenu.render(replace(menu, loader=Loader.GRUB))


def test_grub_finds_the_volume_and_names_every_slot() -> None:
    text = bootmenu.render(replace(MENU, loader=Loader.GRUB, microcode=("boot/amd-ucode.img",), slots=3))
    assert f"search --no-floppy --set=root --fs-uuid {UUID}" in text.splitlines()
    assert words_of(text, "set ") == ["timeout=5", "default=0", "fallback='1 2'"]
    assert [line.split()[0] for line in words_of(text, "linux ")] == [
        f"/current/{slot}/@/boot/vmlinuz-lts" for slot in range(3)
    ]
    assert words_of(text, "initrd ")[1] == "/current/1/@/boot/amd-ucode.img /current/1/@/boot/initramfs-lts"
    assert words_of(text, "linux ")[2] == f"/current/2/@/boot/vmlinuz-lts {bootmenu.options(MENU, 2)}"


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": ""}, {"volume": ""}, {"kernel": ""}, {"initramfs": ""}, {"uuid": "a b"}, {"kernel": 'boot/"x'},
        {"kernel": "boot/../../etc/shadow"}, {"append": "a\nmenuentry x {"}, {"volume": "\x1b"}, {"append": "ä"},
        {"append": "x" * 3000}, {"slots": 0}, {"slots": 10}, {"timeout": -2}, {"microcode": ("boot/a b",)},
        {"resume": "UUID=a b"},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_no_loader_could_read_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        bootmenu.render(replace(MENU, **change))  # type: ignore[arg-type]


menus = st.builds(
    Menu,
    uuid=st.just(UUID),
    volume=st.text("ABCdef \"'#-", min_size=1, max_size=20),
    kernel=st.sampled_from(("boot/vmlinuz-lts", "boot/vmlinuz-virt")),
    initramfs=st.sampled_from(("boot/initramfs-lts", "boot/dracut-lts")),
    microcode=st.lists(st.sampled_from(("boot/intel-ucode.img", "boot/amd-ucode.img")), unique=True).map(tuple),
    slots=st.integers(1, 9),
    loader=st.sampled_from(Loader),
    resume=st.sampled_from(("", "UUID=1234")),
    append=st.text("quiet=\"$;'{}#\\ ", max_size=30),
    timeout=st.integers(-1, 3600),
)


@given(menus)
def test_the_document_gives_the_same_menu_again(menu: Menu) -> None:
    found = json.loads(json.dumps(bootmenu.document(menu)))
    assert bootmenu.from_document(found) == menu
    assert tuple(found["paths"]) == menu.paths


@given(menus)
def test_every_line_stays_a_line_of_its_own(menu: Menu) -> None:
    """No value ends a line, a quote or a block of rEFInd's."""
    for line in bootmenu.render(replace(menu, loader=Loader.REFIND)).splitlines():
        assert line.count('"') % 2 == 0


@pytest.mark.parametrize(
    "found",
    [
        None, [], {}, {"version": 2}, {**bootmenu.document(MENU), "version": 2},
        {**bootmenu.document(MENU), "slots": True}, {**bootmenu.document(MENU), "microcode": "boot/a"},
        {**bootmenu.document(MENU), "loader": "lilo"}, {**bootmenu.document(MENU), "kernel": 7},
        {**bootmenu.document(MENU), "append": "a\nb"}, {"version": 1, "paths": ["boot/vmlinuz-lts"]},
    ],
    ids=str,
)  # fmt: skip
def test_anything_else_is_no_menu(found: object) -> None:
    assert bootmenu.from_document(found) is None
