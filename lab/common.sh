# shellcheck shell=bash
# What the lab's scripts share. Sourced, never run.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hotspare # outlives a checkout: image tarballs, the daemon's process id
state=$repo/.cache                             # of this checkout: virtual environment, keys, collections

# The Debians that are supported, and the PostgreSQL of each.
suites=(bullseye bookworm trixie forky)
declare -A debian=([bullseye]=11 [bookworm]=12 [trixie]=13 [forky]=forky)
declare -A postgresql=([bullseye]=13 [bookworm]=15 [trixie]=17 [forky]=18)

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

wait_for_ssh() { # wait_for_ssh NAME: of a machine that boots, until it is up
    for _ in $(seq 120); do
        if docker exec "$1" systemctl is-active --quiet ssh 2>/dev/null; then return; fi
        sleep 0.25
    done
    die "$1: sshd is not up after 30 s; see: docker exec $1 systemctl status ssh"
}

remove_containers() { # remove_containers FILTER; a lab machine carries the label project=hotspare-lab
    docker ps --all --quiet --filter label=project=hotspare-lab --filter "$1" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
}

remove_networks() { # remove_networks FILTER
    docker network ls --quiet --filter label=project=hotspare-lab --filter "$1" | xargs --no-run-if-empty docker network rm >/dev/null
}
