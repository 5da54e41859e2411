#!/bin/bash
# Everything of a release in dist/: source, wheel, Debian package, image with its SBOM, SHA256SUMS (as root).
#
# Of a commit, built twice, it is the same bytes: dates are the commit's, tools and wheels are pinned in
# pyproject.toml and deploy/debian/wheels.txt. The image follows Debian's mirror: packages that have been
# updated there meanwhile make another one.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly python=.venv/bin/python
version=$("$python" -c 'import ctl; print(ctl.__version__)')

die() {
    printf 'dist: error: %s\n' "$*" >&2
    exit 1
}
[[ -z $(git status --porcelain) ]] || die "not all is committed: $(git status --porcelain | head -n 3 | tr '\n' ' ')"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
umask 022

# Only what git has: a work tree has more.
readonly source=build/dist/source
rm -rf dist build/dist
mkdir -p dist "$source"
git archive HEAD | tar -C "$source" -xf -
"$python" -m build --no-isolation --outdir dist "$source" >build/dist/build.log 2>&1 ||
    die "python -m build failed (all it said: build/dist/build.log)"
scripts/image.sh >/dev/null # and, before it, the Debian package
cd dist
sha256sum -- *"$version"* >SHA256SUMS
ls -l
