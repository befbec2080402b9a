"""apk-atomic: transactional upgrades for Alpine Linux on an immutable btrfs root."""

VERSION = "0.1.0"
