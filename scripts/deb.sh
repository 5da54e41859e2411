#!/bin/bash
# Build the Debian package, dist/ovnet_VERSION_all.deb, of the files that git tracks.
#
#   scripts/deb.sh              the version that ctl/__init__.py says
#   scripts/deb.sh VERSION DIR  another one, for tests of an upgrade; all that is made is in DIR
#
# Built twice, the same bytes: dates are the commit's, and wheels are named by their digests.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly python=.venv/bin/python
version=$("$python" -c 'import ctl; print(ctl.__version__)')
readonly wanted=${1:-$version} output=${2:-dist}
readonly place=${2:+$2/}build/deb
readonly stage=$place/ovnet-$wanted

die() {
    printf 'deb: error: %s\n' "$*" >&2
    exit 1
}
command -v dh_python3 >/dev/null && command -v dpkg-buildpackage >/dev/null ||
    die "debhelper and dh-python are missing: scripts/setup.sh dist"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} || die "not a clone of the repository"
umask 022

rm -rf "$stage"
mkdir -p "$stage" build/wheels "$output"
git ls-files -z bpf ctl metrics docs deploy README.md CHANGELOG.md LICENSE |
    xargs -0 cp --parents --target-directory="$stage"
wheels() { # <where pip looks>
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --requirement deploy/debian/wheels.txt --dest build/wheels "$@" >"$stage.pip.log" 2>&1
}
wheels --no-index --find-links build/wheels || wheels ||
    die "cannot get the wheels ($stage.pip.log); is PyPI reachable?"
mkdir "$stage/wheels"
while read -r name _; do # not what an earlier list has left there
    case $name in '' | '#'*) continue ;; esac
    name=${name//-/_}
    cp "build/wheels/${name/==/-}"-*.whl "$stage/wheels/"
done <deploy/debian/wheels.txt
"$python" -m deploy.generated "$stage/generated"
mv "$stage/deploy/debian" "$stage/debian"
"$python" -m deploy.changelog "$wanted" >"$stage/debian/changelog"
sed -i "s/^__version__ = .*/__version__ = \"$wanted\"/" "$stage/ctl/__init__.py"
sed -e 's,^ExecStart=/opt/ovnet/.venv/bin/ovctl,ExecStart=/usr/bin/ovctl,' \
    -e 's,^Documentation=.*,Documentation=man:ovctl(1) file:/usr/share/doc/ovnet/operating.md,' \
    "$stage/deploy/ovnet.service" >"$stage/debian/ovnet.service"

(cd "$stage" && DEB_BUILD_OPTIONS=nocheck dpkg-buildpackage --build=binary --no-sign --no-check-builddeps) \
    >"$stage.log" 2>&1 || die "dpkg-buildpackage failed (all it said: $stage.log)"
mv "$place/ovnet_${wanted}_all.deb" "$output/"
echo "$output/ovnet_${wanted}_all.deb"
