#!/bin/sh
# Runs the namespace ring on the kernel's own WireGuard: in this kernel where it has WireGuard, else
# in a User-Mode Linux kernel that has it (KERNELWG names its run.sh), else not at all, saying why.
# Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
kernelwg=${KERNELWG:-../shared/kernelwg/run.sh}

HORIZON_BACKEND=kernel
HORIZON_REQUIRE_NETNS=1
export HORIZON_BACKEND HORIZON_REQUIRE_NETNS

# Asked in a namespace of its own, so that no interface is seen to come and go here.
native() { unshare --net ip link add name hzprobe type wireguard 2>/dev/null; }

if native; then
  echo "kernel ring: on this kernel ($(uname -r))"
  exec python -m pytest -m netns "$@"
elif [ -x "$kernelwg" ]; then
  echo "kernel ring: no WireGuard in this kernel ($(uname -r)) or no right to use it; using $kernelwg"
  # The guest takes one string. Sockets need a real file system there, and one slow CPU needs time.
  command=$(printf 'TMPDIR=/run HORIZON_LAB_PATIENCE=120 exec python -m pytest -m netns -o timeout=600 -p no:cacheprovider'
    for argument in "$@"; do printf " '%s'" "$(printf %s "$argument" | sed "s/'/'\\\\''/g")"; done)
  exec "$kernelwg" -t 1800 -- "$command"
else
  echo "kernel ring: skipped: this kernel ($(uname -r)) has no WireGuard, or you are not root," \
    "and there is no $kernelwg"
fi
