#!/usr/bin/env bash
# The GPU check on a machine that has a torch of its own, with or without a network.
#
#   bash gpu_check.sh OUT [--minutes 8] [--device cpu] ...     as python -m cache.gpu_check
#
# PYTHON=python3       the Python that has torch
# WHEELS=folder        wheels of what it lacks; nothing is taken from a network, and never another torch
# LIBS=OUT/libs        where they are unpacked; the Python itself is left as it is
set -euo pipefail
PYTHON=${PYTHON:-python3}
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  echo "error: OUT must be given first, the folder for results (for example: bash gpu_check.sh /tmp/gpu-check)" >&2
  exit 2
fi
mkdir -p -- "$1"
out=$(cd -- "$1" && pwd)
shift
LIBS=${LIBS:-$out/libs}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
[ -z "${WHEELS:-}" ] || WHEELS=$(cd -- "$WHEELS" && pwd)
cd -- "$here"
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
  echo "error: $PYTHON has no torch - name one that has with PYTHON=..., or run 'make gpu-check', which installs it" >&2
  exit 2
fi
export PYTHONPATH="$LIBS${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  mapfile -t lacking < <("$PYTHON" -m cache.gpu_check.wheels "$WHEELS")
  if [ ${#lacking[@]} -gt 0 ]; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade --target "$LIBS" "${lacking[@]}"
  fi
fi
exec "$PYTHON" -m cache.gpu_check "$out" "$@"
