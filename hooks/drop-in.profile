# shellcheck shell=sh
# apk is the front of apk-atomic, in this shell and in all that it starts. /sbin/apk is apk itself, as ever.
case :$PATH: in
*:/usr/libexec/apk-atomic/bin:*) ;;
*) export PATH="/usr/libexec/apk-atomic/bin:$PATH" ;;
esac
