#!/bin/sh
# Makes the machine look as inside an image that was built by the documented recipe, then runs a
# command there:
#
#   unshare --mount tests/e2e/image/recipe.sh PROXY_BASE_URL SCRATCH CLAUDE CMD…
#
# Must be root in a mount namespace of its own. SCRATCH is an empty folder; CLAUDE is the program
# that the recipe's last step would install. /etc and /usr/local are covered before anything is
# written, so that the machine itself stays as it is.
set -eu
PROXY_BASE_URL=$1 scratch=$2 claude=$3
shift 3

[ "$(readlink /proc/self/ns/mnt)" != "$(readlink "/proc/$PPID/ns/mnt")" ] ||
  { echo "recipe: not in a mount namespace of its own" >&2; exit 1; }
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$scratch"
export TMPDIR="$scratch/tmp"
mkdir "$TMPDIR"

# Covers a folder: by an overlay, or where there are none by a copy of it.
cover() {
  part=$scratch/$(echo "$1" | tr / _)
  mkdir "$part" "$part/upper" "$part/work"
  mount -t overlay -o "lowerdir=$1,upperdir=$part/upper,workdir=$part/work" overlay "$1" \
    2>"$part/why" && return
  echo "recipe: $1 is copied: $(cat "$part/why")" >&2
  cp -a "$1/." "$part/upper"
  mount --bind "$part/upper" "$1"
}
node=$(readlink -f "$(command -v node)")
cover /etc
cover /usr/local

# What the image has before: node where the base image puts it.
[ "$node" = /usr/local/bin/node ] || { rm -f /usr/local/bin/node; cp "$node" /usr/local/bin/node; }
rm -f /usr/local/bin/node.real /usr/local/share/ca-certificates/proxy-ca.crt
mkdir -p /usr/local/share/ca-certificates

# The recipe, command by command.
curl -fsSL ${PROXY_BASE_URL}/v1/ca.pem \
  -o /usr/local/share/ca-certificates/proxy-ca.crt \
  && update-ca-certificates || exit

mv /usr/local/bin/node /usr/local/bin/node.real \
  && echo '#!/bin/sh' > /usr/local/bin/node \
  && echo 'exec /usr/local/bin/node.real --use-openssl-ca "$@"' >> /usr/local/bin/node \
  && chmod +x /usr/local/bin/node || exit

# In place of the installation.
ln -sf "$claude" /usr/local/bin/claude

exec "$@"
