#!/bin/bash
# Make this checkout runnable: packages of the distribution that are missing, and a virtual
# environment in .venv. Quick when there is nothing to do. On Debian (12 to 14) and Ubuntu
# (22.04 to 26.04) packages are installed; elsewhere what is missing is named, and what is
# there is used.
#
#   scripts/setup.sh        everything that tests, demo and bench need
#   scripts/setup.sh run    only what a node needs
#   scripts/setup.sh dist   besides, what packages are built and tried with
#   scripts/setup.sh kernels    besides, what `make kernels` emulates machines with
#   scripts/setup.sh distros    besides, what `make distros` makes fresh systems with
set -euo pipefail
cd "$(dirname "$0")/.."

readonly mode=${1:-dev}
readonly venv=.venv
readonly stamp=$venv/.ready-$mode
# Where the system is; tests have one of their own.
readonly system=${SETUP_SYSTEM:-}
eval "$(sed -nE 's/^(ID|ID_LIKE|VERSION_ID)=/os_&/p' "$system/etc/os-release" 2>/dev/null)" || true
readonly os_ID=${os_ID:-unknown} os_ID_LIKE=${os_ID_LIKE:-} os_VERSION_ID=${os_VERSION_ID:-}
# The one Python that sees the distribution's BCC. Another python3 in PATH does not.
python=$system/usr/bin/python3

# a|b: whichever the distribution has.
run_packages=(python3-bpfcc python3-venv python3-yaml linux-libc-dev nftables iproute2 ca-certificates zstd)
dev_packages=(make git gcc iptables iperf3 sockperf tcpdump conntrack 'bpftool|linux-tools-generic' ethtool
    iputils-ping procps curl busybox-static util-linux traceroute docker.io containerd
    containernetworking-plugins prometheus etcd-server openssl)
if [[ $os_ID == ubuntu && $os_VERSION_ID == 22.04 ]]; then # its python3 is 3.10, and its BCC fits both
    python=$system/usr/bin/python3.11
    run_packages+=(python3.11 python3.11-venv)
fi
readonly python
# To find and unpack a kernel's modules, virtme-ng wants kmod and file.
kernels_packages=(qemu-system-x86 kmod file)
dist_packages=(debhelper dh-python dpkg-dev lintian debootstrap strace)
readonly emulator=build/kernels/venv
distros_packages=(debootstrap)

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

# Why a command failed, by its log: the line that begins like this, else the last one. What may be the
# matter is asked where it does not say.
reason() { # <log> <how the line begins> <question> [where the log stays]
    local line where=${4:+ (all of it: ${4-})}
    if grep -qs -e 'No space left on device' -e "have enough free space" "$1"; then
        echo "the disk is full: make room, and run it again"
        return
    fi
    line=$(grep -s -m 1 "^$2" "$1" || tail -n 1 "$1" 2>/dev/null) || true
    line=${line#"$2"}
    # A full disk has no room for words either.
    if [[ -n $line ]]; then echo "$line$where; $3"; else echo "without a word; is the disk full?"; fi
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
        has_package "${package%|*}" || has_package "${package#*|}" && continue
        case $package in # upstream's packages conflict with Debian's
        docker.io) command -v dockerd >/dev/null && continue ;;
        containerd) command -v containerd >/dev/null && continue ;;
        esac
        echo "$package"
    done
}

# Of a|b, the one that apt knows; of others, themselves.
available() {
    local package
    for package in "$@"; do
        if [[ $package == *\|* && $(apt-cache policy "${package%|*}") == *'Candidate: '[^\(]* ]]; then
            package=${package%|*}
        fi
        echo "${package#*|}"
    done
}

# Debian starts and enables a service as soon as its package is there. We want the
# programs only: refuse starts while apt runs, then disable the units that are new.
policy=$system/usr/sbin/policy-rc.d
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
    local what=$1 log why
    shift
    log=$(mktemp) || die "no temporary file: make room in ${TMPDIR:-/tmp}, and run it again"
    if ! DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1; then
        why=$(reason "$log" 'E: ' "is a mirror reachable, and this system's list of mirrors right?")
        rm -f "$log"
        die "$what failed: $why"
    fi
    rm -f "$log"
}

# Where we know no package manager, or not its names: what a node needs is looked for, not its packages.
name_packages() {
    local lacking=() commands=() each how
    case " $os_ID $os_ID_LIKE " in
    *' fedora '* | *' rhel '*) how='dnf install python3-bcc kernel-headers nftables iproute iproute-tc' ;;
    *' arch '*) how='pacman -S python-bcc linux-api-headers nftables iproute2' ;;
    *suse*) how='zypper install python3-bcc linux-glibc-devel nftables iproute2' ;;
    *' alpine '*) how='apk add py3-bcc linux-headers nftables iproute2' ;;
    *) how='BCC for Python, the UAPI headers of Linux, nftables, iproute2' ;;
    esac
    "$python" -c 'import bcc; bcc.BPF' 2>/dev/null || lacking+=("BCC for $python")
    "$python" -c 'import ensurepip' 2>/dev/null || lacking+=("venv for $python")
    [[ -e $system/usr/include/linux/if_ether.h ]] || lacking+=("Linux's UAPI headers")
    for each in nft ip tc; do command -v "$each" >/dev/null || lacking+=("$each"); done
    ((${#lacking[@]} == 0)) || die "$os_ID: no apt here; install what is missing ($(list "${lacking[@]}")): $how"
    if [[ $mode == dev ]]; then
        for each in gcc iptables iperf3 sockperf tcpdump conntrack bpftool ethtool ping ps curl busybox \
            setpriv traceroute dockerd containerd prometheus etcd openssl; do
            command -v "$each" >/dev/null || commands+=("$each")
        done
    fi
    say "packages: $os_ID: what a node needs is there${commands[*]:+; tests would want: ${commands[*]}}"
}

list() { # a, b, c
    local joined
    printf -v joined '%s, ' "$@"
    echo "${joined%, }"
}

install_packages() {
    local wanted=("${run_packages[@]}") absent
    [[ $mode != dev ]] || wanted+=("${dev_packages[@]}")
    [[ $mode != kernels ]] || wanted=("${kernels_packages[@]}")
    [[ $mode != dist ]] || wanted=("${dist_packages[@]}")
    [[ $mode != distros ]] || wanted=("${distros_packages[@]}")
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        [[ $mode == dev || $mode == run ]] || die "$os_ID: no apt here; make $mode is for Debian and Ubuntu"
        name_packages
        return
    fi
    mapfile -t absent < <(missing "${wanted[@]}")
    if ((${#absent[@]} == 0)); then
        say "packages: all ${#wanted[@]} there"
        return
    fi
    [[ $(id -u) == 0 ]] || die "not root, and these packages are missing: ${absent[*]%|*}; run it as root"
    say "packages: installing ${absent[*]%|*}"
    trap allow_services EXIT
    forbid_services
    apt_step "apt-get update" update
    mapfile -t absent < <(available "${absent[@]}")
    apt_step "installing packages" install --yes --no-install-recommends "${absent[@]}"
    allow_services
    disable_new_units "${absent[@]}"
}

make_venv() {
    # A venv of another Python, or of the place this checkout was copied from, is of no use.
    local made
    made=$(sed -n 's/^command = //p' "$venv/pyvenv.cfg" 2>/dev/null) || true
    if [[ $made != "$python -m venv "*" $PWD/$venv" ]]; then
        local first why
        first=$(command -v python3 || true)
        [[ -z $first || $first -ef $python ]] || first=", with this system's BCC; not of $first, which is first in PATH"
        say "venv: new, of $python${first##/*}"
        why=$("$python" -m venv --clear --system-site-packages "$venv" 2>&1) ||
            die "cannot create $PWD/$venv: $(tail -n 1 <<<"$why"); is the disk full?"
    fi
}

# pip in a virtual environment, whatever a pip.conf says of user's sites. One line if it fails.
pip_install() { # <directory of the environment> <what...>
    local place=$1 log=$1/pip.log
    shift
    { PIP_USER=0 "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$log" 2>&1; } \
        2>/dev/null && return
    if grep -qs externally-managed "$log"; then
        die "$PWD/$place is no virtual environment (any more): remove it and try again"
    fi
    die "pip install ${*: -1} failed: $(reason "$log" 'ERROR: ' 'is PyPI reachable?' "$PWD/$log")"
}

install_python() {
    local what=. each
    [[ $mode == run ]] || what='.[dev]'
    say "python: pip install -e $what"
    # Of an upgrade that does not come to its end no stamp is left either.
    for each in "$venv"/.ready-*; do
        [[ ! -e $each || $(<"$each") == "$(fingerprint)" ]] || rm -f "$each"
    done
    pip_install "$venv" -e "$what"
}

install_emulator() {
    say "emulator: virtme-ng in $emulator"
    mkdir -p "${emulator%/*}"
    "$python" -m venv --clear "$emulator" || die "cannot create $PWD/$emulator"
    pip_install "$emulator" 'virtme-ng==1.42'
    touch "$emulator/.ready"
}

check_python() {
    [[ -x $python ]] || die "there is no $python: install Python 3.11 or newer of this distribution"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is $("$python" -V), and 3.11 is the oldest that will do: this release of $os_ID is too old"
}

check() {
    "$venv/bin/python" -c 'import bcc; bcc.BPF' 2>/dev/null ||
        die "$venv/bin/python cannot import bcc; is python3-bpfcc installed, and no package called bcc from PyPI?"
    "$venv/bin/python" -c 'import prometheus_client, pyroute2' || die "$venv is damaged: remove it and try again"
}

# They would lead our Python to another one's modules.
unset PYTHONHOME PYTHONPATH
case $mode in dev | run | dist | kernels | distros) ;; *) die "unknown mode '$mode' (nothing, or: run, dist, kernels, distros)" ;; esac
if [[ $mode == dist ]]; then
    install_packages
    exit 0
fi
if [[ $mode == kernels ]]; then
    install_packages
    [[ -e $emulator/.ready ]] || install_emulator
    apt_step "apt-get update" update # which kernels there are
    exit 0
fi
if [[ $mode == distros ]]; then
    install_packages
    exit 0
fi
if [[ -e $stamp && -x $venv/bin/python && $(<"$stamp") == "$(fingerprint)" ]]; then
    exit 0
fi
# What a run that did not come to its end has made (the disk was full, it was killed) is not built upon.
[[ -n $(find "$venv" -maxdepth 1 -name '.ready-*' -size +0 2>/dev/null) ]] || rm -rf "$venv"
install_packages
check_python
make_venv
install_python
check
fingerprint >"$stamp" || die "cannot write $PWD/$stamp: is the disk full?"
say "done: $PWD/$venv"
