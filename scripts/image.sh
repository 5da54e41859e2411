#!/bin/bash
# Build the container image ovnet:VERSION, and dist/ovnet-VERSION.image.tar of it (as root).
#
# The daemon is the one that `docker` reaches; if it reaches none, one is started for the build, with its
# files below build/image/. The base image is made here under its usual name if there is none: no registry
# is asked.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly python=.venv/bin/python place=$PWD/build/image base=debian:bookworm-slim
version=$("$python" -c 'import ctl; print(ctl.__version__)')
revision=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

die() {
    printf 'image: error: %s\n' "$*" >&2
    exit 1
}

daemon=
stop_daemon() {
    [[ -z $daemon ]] || kill "$daemon" 2>/dev/null || true
    [[ -z $daemon ]] || wait "$daemon" || true
}

start_daemon() {
    ((EUID == 0)) || die "docker reaches no daemon, and only root can start one"
    command -v dockerd >/dev/null || die "docker reaches no daemon, and there is no dockerd to start"
    mkdir -p "$place"
    export DOCKER_HOST=unix://$place/docker.sock
    # It writes to these whatever it is told.
    # shellcheck disable=SC2016
    unshare --mount sh -c '
        for each in /etc/docker /run/docker /run/containerd; do mkdir -p $each; mount -t tmpfs tmpfs $each; done
        exec dockerd "$@"' dockerd \
        --host "$DOCKER_HOST" --data-root "$place/docker" --exec-root "$place/exec" --pidfile "$place/docker.pid" \
        --bridge none --iptables=false >"$place/dockerd.log" 2>&1 &
    daemon=$!
    trap stop_daemon EXIT
    for _ in $(seq 300); do
        docker info >/dev/null 2>&1 && return
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.2
    done
    die "dockerd does not answer (all it said: $place/dockerd.log)"
}

# What Debian's own slim image leaves out stays out of what is installed later too.
make_base() {
    local tree=$place/base
    rm -rf "$tree"
    debootstrap --variant=minbase bookworm "$tree" >"$place/debootstrap.log" 2>&1 ||
        die "debootstrap failed (all it said: $place/debootstrap.log); is a Debian mirror reachable?"
    mkdir -p "$tree/etc/dpkg/dpkg.cfg.d"
    printf 'path-exclude=%s\n' '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' \
        '/usr/share/lintian/*' >"$tree/etc/dpkg/dpkg.cfg.d/slim"
    printf 'path-include=%s\n' '/usr/share/doc/*/copyright' '/usr/share/doc/ovnet/*' >>"$tree/etc/dpkg/dpkg.cfg.d/slim"
    find "$tree/usr/share/doc" -mindepth 1 \( -type f -o -type l \) -not -name copyright -delete
    find "$tree/usr/share/doc" -mindepth 1 -type d -empty -delete
    rm -rf "$tree"/usr/share/{man,locale,info,lintian}/* "$tree"/var/{lib/apt/lists,cache,log}/* "$tree"/var/lib/dpkg/*-old
    : >"$tree/etc/machine-id"
    rm -f "$tree/etc/hostname" "$tree/etc/resolv.conf"
    # Its date is Debian's own, of this release: one that was made for an earlier commit is the same.
    tar -C "$tree" --numeric-owner --sort=name --mtime="@$(stat -c %Y "$tree/etc/debian_version")" --clamp-mtime -cf - . |
        docker import --change 'CMD ["bash"]' - "$base" >/dev/null
    rm -rf "$tree"
}

mkdir -p "$place/context" dist
scripts/deb.sh >/dev/null
docker info >/dev/null 2>&1 || start_daemon
docker image inspect "$base" >/dev/null 2>&1 || make_base
cp "dist/ovnet_${version}_all.deb" "$place/context/ovnet.deb"
cp deploy/image/{sbom.py,flanneld.py,install-cni-plugins,install-conf} "$place/context/"
docker build --quiet --no-cache --network host --file deploy/image/Containerfile --tag "ovnet:$version" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "EPOCH=$SOURCE_DATE_EPOCH" \
    "$place/context" >"$place/build.log" 2>&1 || die "docker build failed (all it said: $place/build.log)"
docker save "ovnet:$version" | "$python" -m deploy.image.normal "dist/ovnet-$version.image.tar"
docker run --rm --network none --entrypoint cat "ovnet:$version" /usr/share/doc/ovnet/sbom.cdx.json \
    >"dist/ovnet-$version.sbom.cdx.json"
echo "dist/ovnet-$version.image.tar"
