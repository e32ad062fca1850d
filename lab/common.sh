# shellcheck shell=bash
# What the lab's scripts share. Sourced, never run.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hotspare # outlives a checkout: image tarballs, the daemon's process id
state=$repo/.cache                             # of this checkout: virtual environment, keys, collections

say() { printf 'lab: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# Enough for systemd, sshd, PostgreSQL and iptables, without --privileged (the same in .config/molecule/config.yml).
machine_options() {
    echo --tty --cap-add SYS_ADMIN --cap-add NET_ADMIN --tmpfs /run --tmpfs /run/lock \
        --security-opt seccomp=unconfined --security-opt apparmor=unconfined
}

remove_containers() { # remove_containers FILTER; a lab machine carries the label project=hotspare-lab
    docker ps --all --quiet --filter label=project=hotspare-lab --filter "$1" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
}

remove_networks() { # remove_networks FILTER
    docker network ls --quiet --filter label=project=hotspare-lab --filter "$1" | xargs --no-run-if-empty docker network rm >/dev/null
}
