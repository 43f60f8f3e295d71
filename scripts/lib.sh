# shellcheck shell=bash
# What the scripts of this folder share: where things are, how to talk, and who runs what.  Sourced, not run.

# shellcheck disable=SC2034  # used by those who source this
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null; }

# Under sudo, cargo and all it writes belong to the user who called sudo.
user=
if [ "$EUID" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    user=$SUDO_USER
    HOME=$(getent passwd "$user" | cut -d: -f6)
    export HOME
fi
for home in "${CARGO_HOME:-}" "$HOME/.cargo" /usr/local/cargo; do
    if [ -n "$home" ] && [ -x "$home/bin/cargo" ]; then
        PATH=$home/bin:$PATH
        # An installation for the whole machine is found by these two alone.
        if [ "$home" = /usr/local/cargo ]; then
            export CARGO_HOME=$home RUSTUP_HOME=${RUSTUP_HOME:-/usr/local/rustup}
        fi
        break
    fi
done
export PATH

as_user() {
    if [ -n "$user" ]; then
        runuser -u "$user" -- "$@"
    else
        "$@"
    fi
}

as_root() {
    if [ "$EUID" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "needs root for: $* (run it as root, or install sudo)"
    fi
}
