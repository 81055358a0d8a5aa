#!/bin/sh
# Build killswitch-test/etcd:bookworm from Debian packages, for machines that reach no image registry.
#
#   tests/images/build.sh            build what is missing; does nothing when the image is there
#
# Needs root (debootstrap makes device nodes and a chroot), debootstrap and a Docker daemon. DEBIAN_MIRROR names a mirror
# other than debootstrap's own default. Safe to run twice at the same time.
set -eu

IMAGE=killswitch-test/etcd:bookworm
BASE=debian:bookworm-slim
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

say() { printf 'images: %s\n' "$*" >&2; }
have() { docker image inspect "$1" >/dev/null 2>&1; }

# One builder at a time: the second one finds the image of the first.
if [ "${KILLSWITCH_IMAGE_LOCK:-}" != held ]; then
  exec env KILLSWITCH_IMAGE_LOCK=held flock "$HERE/build.sh" "$HERE/build.sh" "$@"
fi

have "$IMAGE" && { say "$IMAGE is there"; exit 0; }

if ! have "$BASE"; then
  [ "$(id -u)" = 0 ] || { say "building $BASE needs root, because debootstrap does"; exit 1; }
  command -v debootstrap >/dev/null || { say "debootstrap is missing: apt-get install debootstrap"; exit 1; }
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT INT TERM
  say "debootstrap of bookworm"
  debootstrap --variant=minbase bookworm "$root/tree" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$root/log" 2>&1 ||
    { tail -n 20 "$root/log" >&2; say "debootstrap failed"; exit 1; }
  rm -rf "$root/tree/var/cache/apt/archives"/*.deb
  tar -C "$root/tree" -c . | docker import - "$BASE" >/dev/null
fi

say "building $IMAGE"
# --network host: the daemon's bridge may have no way out. policy-rc.d: a package must not start a service in a build.
docker build --network host --tag "$IMAGE" - >&2 <<DOCKERFILE
FROM $BASE
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \
 && apt-get update && apt-get install -y --no-install-recommends etcd-server etcd-client \
 && rm -rf /var/lib/apt/lists/*
EXPOSE 2379
ENTRYPOINT []
CMD ["etcd", "--data-dir=/var/lib/etcd/test", "--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://0.0.0.0:2379"]
DOCKERFILE
say "$IMAGE is built"
