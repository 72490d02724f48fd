#!/usr/bin/env bash
# Python on a worker of the tests' cloud: makes environments that hold nothing but `vlm`, and notes what pip is asked for.
case "$1 ${2-}" in
  "--version ") echo "Python 3.11.0" ;;
  "-m venv")
    mkdir -p "$3/bin"
    cp "$FAKE_CLOUD/worker_bin/python3.11" "$3/bin/python"
    cp "$FAKE_CLOUD/worker_bin/vlm" "$3/bin/vlm"
    ;;
  "-m pip")
    printf '%s ' "$@" >> "$FAKE_CLOUD/pip-$FAKE_NODE-$FAKE_WORKER"
    echo >> "$FAKE_CLOUD/pip-$FAKE_NODE-$FAKE_WORKER"
    if [[ -f $FAKE_CLOUD/plans/pip-fails-$FAKE_NODE-$FAKE_WORKER ]]; then
      echo "no matching distribution" >&2
      exit 1
    fi
    ;;
esac
