#!/bin/bash
# Make this checkout runnable on Debian 12: packages of the distribution that are
# missing, and a virtual environment in .venv. Quick when there is nothing to do.
#
#   scripts/setup.sh        everything that tests, demo and bench need
#   scripts/setup.sh run    only what a node needs
#   scripts/setup.sh kernels    besides, what `make kernels` emulates machines with
set -euo pipefail
cd "$(dirname "$0")/.."

readonly mode=${1:-dev}
readonly venv=.venv
readonly stamp=$venv/.ready-$mode
# The one Python that sees Debian's BCC. Another python3 in PATH does not.
readonly python=/usr/bin/python3

run_packages=(python3-bpfcc python3-venv linux-libc-dev nftables iproute2 ca-certificates)
dev_packages=(make git gcc iptables iperf3 sockperf tcpdump conntrack bpftool ethtool iputils-ping
    procps curl busybox-static util-linux traceroute docker.io containerd containernetworking-plugins
    prometheus etcd-server openssl)
# To find and unpack a kernel's modules, virtme-ng wants kmod and file.
kernels_packages=(qemu-system-x86 kmod file)
readonly emulator=build/kernels/venv

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

# What the stamp stands for: this place and these inputs.
fingerprint() {
    echo "$PWD"
    sha256sum pyproject.toml scripts/setup.sh
}

has_package() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# Packages of the list that neither dpkg nor another installation provides.
missing() {
    local package
    for package in "$@"; do
        has_package "$package" && continue
        case $package in # upstream's packages conflict with Debian's
        docker.io) command -v dockerd >/dev/null && continue ;;
        containerd) command -v containerd >/dev/null && continue ;;
        esac
        echo "$package"
    done
}

# Debian starts and enables a service as soon as its package is there. We want the
# programs only: refuse starts while apt runs, then disable the units that are new.
policy=/usr/sbin/policy-rc.d
policy_is_ours=
forbid_services() {
    [[ -e $policy ]] && return
    policy_is_ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
}
allow_services() {
    [[ -z $policy_is_ours ]] || rm -f "$policy"
    policy_is_ours=
}
disable_new_units() {
    local package unit
    for package in "$@"; do
        case $package in docker.io | containerd | prometheus | etcd-server) ;; *) continue ;; esac
        for unit in $(dpkg -L "$package" | sed -En 's,^(/usr)?/lib/systemd/system/(.*\.(service|socket))$,\2,p'); do
            # It does nothing for those who are not dpkg.
            DPKG_MAINTSCRIPT_PACKAGE=$package deb-systemd-helper disable "$unit" >/dev/null 2>&1 || true
        done
    done
}

apt_step() { # <what> <apt-get arguments>
    local what=$1 log
    shift
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1; then
        tail -n 5 "$log" | sed 's/^/  /' >&2
        rm -f "$log"
        die "$what failed (above: the end of apt's output); is a Debian mirror reachable?"
    fi
    rm -f "$log"
}

install_packages() {
    local wanted=("${run_packages[@]}") absent
    [[ $mode != dev ]] || wanted+=("${dev_packages[@]}")
    [[ $mode != kernels ]] || wanted=("${kernels_packages[@]}")
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
        die "no apt here: only Debian 12 is set up by itself; elsewhere install the equivalents of: ${wanted[*]}"
    mapfile -t absent < <(missing "${wanted[@]}")
    if ((${#absent[@]} == 0)); then
        say "packages: all ${#wanted[@]} there"
        return
    fi
    ((EUID == 0)) || die "not root, and these packages are missing: ${absent[*]}; run it as root"
    say "packages: installing ${absent[*]}"
    trap allow_services EXIT
    forbid_services
    apt_step "apt-get update" update
    apt_step "installing packages" install --yes --no-install-recommends "${absent[@]}"
    allow_services
    disable_new_units "${absent[@]}"
}

make_venv() {
    # A venv of another Python, or of the place this checkout was copied from, is of no use.
    local made
    made=$(sed -n 's/^command = //p' "$venv/pyvenv.cfg" 2>/dev/null) || true
    if [[ $made != "$python -m venv "*" $PWD/$venv" ]]; then
        say "venv: new, of $python"
        "$python" -m venv --clear --system-site-packages "$venv" || die "cannot create $PWD/$venv"
    fi
}

install_python() {
    local what=. log=$venv/pip.log
    [[ $mode == run ]] || what='.[dev]'
    say "python: pip install -e $what"
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$what" >"$log" 2>&1; then
        grep -i 'error' "$log" | head -n 3 >&2 || true
        die "pip install -e $what failed (all of it: $PWD/$log); is PyPI reachable?"
    fi
}

install_emulator() {
    say "emulator: virtme-ng in $emulator"
    mkdir -p "${emulator%/*}"
    "$python" -m venv --clear "$emulator" || die "cannot create $PWD/$emulator"
    "$emulator/bin/python" -m pip install --quiet --disable-pip-version-check 'virtme-ng==1.42' >"$emulator/pip.log" 2>&1 ||
        die "pip install virtme-ng failed (all of it: $PWD/$emulator/pip.log); is PyPI reachable?"
    touch "$emulator/.ready"
}

check() {
    "$venv/bin/python" -c 'import bcc; bcc.BPF' 2>/dev/null ||
        die "$venv/bin/python cannot import bcc; is python3-bpfcc installed, and no package called bcc from PyPI?"
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is older than Python 3.11"
    "$venv/bin/python" -c 'import prometheus_client, pyroute2' || die "$venv is damaged: remove it and try again"
}

case $mode in dev | run | kernels) ;; *) die "unknown mode '$mode' (nothing, or: run, kernels)" ;; esac
if [[ $mode == kernels ]]; then
    install_packages
    [[ -e $emulator/.ready ]] || install_emulator
    apt_step "apt-get update" update # which kernels there are
    exit 0
fi
if [[ -e $stamp && -x $venv/bin/python && $(<"$stamp") == "$(fingerprint)" ]]; then
    exit 0
fi
install_packages
make_venv
install_python
check
fingerprint >"$stamp"
say "done: $PWD/$venv"
