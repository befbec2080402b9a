# make demo: the main job, for real, on a volume of its own.   make test: the suite.   make test-boot: real boots.
# They set up what they need (system packages, a virtual environment in .venv) and leave nothing mounted or attached.
# Images that take long to make are kept in memory for the next run; make clean removes them, and all else.

PREFIX = /usr
DESTDIR =
PYTHON = python3
VENV = .venv
DISK = build/disk.img
# or kvm, which is faster by far where it is
ACCEL = tcg
# where $(PYTHON) looks for packages when it is installed in $(PREFIX)
SITE = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib", "posix_prefix", {"base": "$(PREFIX)"}))')
INTERPRETER = $(PREFIX)/bin/python3
LIBEXEC = $(PREFIX)/libexec/apk-atomic
# hooks/ say /usr: they run from there as they are
PLACED = sed -e 's|/usr/libexec/apk-atomic|$(LIBEXEC)|g' -e 's|/usr/bin/apk-atomic|$(PREFIX)/bin/apk-atomic|g' \
	-e 's|/usr/bin/python3|$(INTERPRETER)|g'

# the tests that need neither root nor network, nor a volume: what a package's build can run
PURE = adoption atomic_options autoplan checkup cmdline config console databases documents elf fstab initramfs installed kernel kernel_image layers model proof \
	rebuild retention schedule unpack verdict

MAN = doc/apk-atomic.8 doc/apk-atomic.toml.5 doc/apk-atomic-layout.7

.PHONY: all man install install-modules install-data install-completions install-drop-in install-unattended aport \
	demo disk machine test test-boot check lint bench setup clean

all:
	@echo "make man | install [DESTDIR=] [PREFIX=/usr] | demo | disk | machine | test | test-boot | check | lint | bench | clean"

man: $(MAN)

# by way of another name: an interrupted scdoc leaves no half page, nor do two at once
$(MAN): %: %.scd
	scdoc < $< > $@.$$$$ && mv $@.$$$$ $@

install: install-modules install-data

install-modules:
	install -d "$(DESTDIR)$(SITE)/apk_atomic/commands"
	install -m 644 apk_atomic/*.py apk_atomic/py.typed "$(DESTDIR)$(SITE)/apk_atomic/"
	install -m 644 apk_atomic/commands/*.py "$(DESTDIR)$(SITE)/apk_atomic/commands/"
	$(PYTHON) -m compileall -q -s "$(DESTDIR)" -p / "$(DESTDIR)$(SITE)/apk_atomic"

# all but the modules; the manual pages where scdoc is there to make them, or made them before
install-data: install-completions
	! command -v scdoc >/dev/null || $(MAKE) --no-print-directory man
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)/etc/apk-atomic"
	sed '1s|^#!.*|#!$(INTERPRETER) -I|' apk_atomic/front.py > "$(DESTDIR)$(PREFIX)/bin/apk-atomic"
	chmod 755 "$(DESTDIR)$(PREFIX)/bin/apk-atomic"
	install -m 644 config/apk-atomic.toml "$(DESTDIR)/etc/apk-atomic/apk-atomic.toml"
	install -D -m 755 hooks/apk-atomic-adopt.initd "$(DESTDIR)/etc/init.d/apk-atomic-adopt"
	for page in $(MAN); do [ ! -e "$$page" ] || \
		install -D -m 644 "$$page" "$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page#doc/}"; done

# made from the tables by which apk-atomic reads its lines
install-completions:
	install -d "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" \
		"$(DESTDIR)$(PREFIX)/share/zsh/site-functions" "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d"
	for file in bash:bash-completion/completions/apk-atomic zsh:zsh/site-functions/_apk-atomic \
		fish:fish/vendor_completions.d/apk-atomic.fish; do \
		$(PYTHON) -B -m tools.completions "$${file%%:*}" > "$(DESTDIR)$(PREFIX)/share/$${file#*:}" || exit; done

# makes `apk` mean apk-atomic, where PATH permits; apk itself stays what and where it is
install-drop-in:
	install -d "$(DESTDIR)$(LIBEXEC)/bin" "$(DESTDIR)/etc/profile.d" "$(DESTDIR)/lib/apk/commit_hooks.d"
	$(PLACED) hooks/apk-front > "$(DESTDIR)$(LIBEXEC)/bin/apk"
	ln -sf ../../bin/apk-atomic "$(DESTDIR)$(LIBEXEC)/apk"
	$(PLACED) hooks/drop-in.profile > "$(DESTDIR)/etc/profile.d/apk-atomic-drop-in.sh"
	$(PLACED) hooks/apk-guard > "$(DESTDIR)/lib/apk/commit_hooks.d/apk-atomic"
	chmod 755 "$(DESTDIR)$(LIBEXEC)/bin/apk" "$(DESTDIR)/lib/apk/commit_hooks.d/apk-atomic"
	chmod 644 "$(DESTDIR)/etc/profile.d/apk-atomic-drop-in.sh"

# the jobs of busybox crond; how far they go is for [auto] in the configuration to say
install-unattended:
	install -D -m 755 hooks/apk-atomic.periodic "$(DESTDIR)/etc/periodic/daily/apk-atomic"
	install -D -m 755 hooks/apk-atomic-reboot.periodic "$(DESTDIR)/etc/periodic/15min/apk-atomic-reboot"

# what aports gets: in build/aport, with the sources in an archive and its checksum; then abuild -r there. Who submits it
# says MAINTAINER="NAME <ADDRESS>"
aport:
	$(PYTHON) -B -m tools.aport build/aport "$$MAINTAINER"

setup:
	sh tests/support/setup.sh "$(VENV)" "$(PYTHON)"

demo: setup
	"$(VENV)/bin/python" -m tests.demo

test: setup
	"$(VENV)/bin/python" -m tests

# on Debian: virtual machines, with emulator, firmware, boot loader and kernels from its archive
test-boot:
	sh tests/support/setup.sh "$(VENV)" "$(PYTHON)" boot
	"$(VENV)/bin/python" -m pytest -m boot tests/boot

# on Debian: a disk image to try it on, and QEMU, which Ctrl-A x ends, on this terminal
disk:
	sh tests/support/setup.sh "$(VENV)" "$(PYTHON)" boot
	mkdir -p "$(dir $(DISK))"
	"$(VENV)/bin/python" -m tests.boot.tryout "$(DISK)"
	cp /usr/share/OVMF/OVMF_VARS_4M.fd "$(DISK).variables"

machine:
	qemu-system-x86_64 -machine q35 -accel $(ACCEL) -cpu max -smp 2 -m 768 -nographic -nic none -no-reboot \
		-drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
		-drive if=pflash,format=raw,file="$(DISK).variables" -drive if=virtio,format=raw,file="$(DISK)"

# with the packages of $(PYTHON) itself: nothing is installed
check:
	"$(PYTHON)" -m pytest $(PURE:%=tests/test_%.py)

lint: setup
	"$(VENV)/bin/python" -m pytest tests/test_lint.py tests/test_layers.py

bench: setup
	"$(VENV)/bin/python" -m bench

clean:
	rm -rf /dev/shm/apk-atomic-images-* "$${TMPDIR:-/tmp}"/apk-atomic-images-*
	rm -rf $(MAN) "$(VENV)" .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
