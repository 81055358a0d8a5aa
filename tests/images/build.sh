#!/bin/sh
# Build the images of the tests' servers from Debian packages, for machines that reach no image registry.
#
#   tests/images/build.sh etcd redis zookeeper      build what is missing of killswitch-test/NAME:bookworm
#   tests/images/build.sh base                      only debian:bookworm-slim, which all of them stand on
#
# Needs root (debootstrap makes device nodes and a chroot), debootstrap and a Docker daemon. DEBIAN_MIRROR names a mirror
# other than debootstrap's own default. KILLSWITCH_TEST_BASE_IMAGE names another base, a Debian bookworm that is there or
# can be pulled; it is never built here. Safe to run twice at the same time.
set -eu

BASE=${KILLSWITCH_TEST_BASE_IMAGE:-debian:bookworm-slim}
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

say() { printf 'images: %s\n' "$*" >&2; }
have() { docker image inspect "$1" >/dev/null 2>&1; }

# One builder at a time: the second one finds the images of the first.
if [ "${KILLSWITCH_IMAGE_LOCK:-}" != held ]; then
  exec env KILLSWITCH_IMAGE_LOCK=held flock "$HERE/build.sh" "$HERE/build.sh" "$@"
fi

build_base() {
  have "$BASE" && return
  if [ -n "${KILLSWITCH_TEST_BASE_IMAGE:-}" ]; then
    docker pull "$BASE" >&2 && return
    say "KILLSWITCH_TEST_BASE_IMAGE names $BASE, which is not here and cannot be pulled; name another, or none"
    exit 1
  fi
  [ "$(id -u)" = 0 ] || { say "building $BASE needs root, because debootstrap does"; exit 1; }
  command -v debootstrap >/dev/null || { say "debootstrap is missing: apt-get install debootstrap"; exit 1; }
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT INT TERM
  say "debootstrap of bookworm"
  debootstrap --variant=minbase bookworm "$root/tree" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$root/log" 2>&1 ||
    { tail -n 20 "$root/log" >&2; say "debootstrap failed"; exit 1; }
  rm -rf "$root/tree/var/cache/apt/archives"/*.deb
  tar -C "$root/tree" -c . | docker import - "$BASE" >/dev/null
}

# The packages of one server.
packages_of() {
  case $1 in
    etcd) echo etcd-server etcd-client ;;
    redis) echo redis-server redis-sentinel redis-tools ;;
    zookeeper) echo zookeeper default-jre-headless ;;
    *) say "there is no image $1; there are etcd, redis and zookeeper"; exit 2 ;;
  esac
}

build() {
  image=killswitch-test/$1:bookworm
  have "$image" && { say "$image is there"; return; }
  packages=$(packages_of "$1")
  build_base
  say "building $image"
  # --network host: the daemon's bridge may have no way out. policy-rc.d: a package must not start a service in a build.
  # iproute2: tests cut and slow networks from within a container's own namespace.
  docker build --network host --tag "$image" - >&2 <<DOCKERFILE
FROM $BASE
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \
 && apt-get update && apt-get install -y --no-install-recommends $packages iproute2 \
 && rm -rf /var/lib/apt/lists/*
ENTRYPOINT []
CMD ["sleep", "infinity"]
DOCKERFILE
  say "$image is built"
}

[ $# -gt 0 ] || set -- etcd redis zookeeper
for name in "$@"; do
  if [ "$name" = base ]; then build_base; else build "$name"; fi
done
