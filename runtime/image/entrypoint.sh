#!/bin/sh
# Gives any uid a name and writable caches, then becomes the command (tini, its parent, passes signals on).
set -eu
for folder in "$HF_HOME" "$VLLM_CACHE_ROOT" "$VLLM_CONFIG_ROOT" "$TRITON_CACHE_DIR" "$TORCHINDUCTOR_CACHE_DIR"; do
    mkdir -p "$folder" || { echo "error: $folder is not writable for uid $(id -u): mount a volume or tmpfs on /cache" >&2; exit 11; }
done
if ! getent passwd "$(id -u)" > /dev/null; then
    # An arbitrary uid (Kubernetes, OpenShift) has no entry, and getpwuid() raises in Python.
    { cat /etc/passwd; echo "vllm-$(id -u):x:$(id -u):$(id -g):vLLM:$HOME:/usr/sbin/nologin"; } > /tmp/passwd
    export NSS_WRAPPER_PASSWD=/tmp/passwd NSS_WRAPPER_GROUP=/etc/group LD_PRELOAD=libnss_wrapper.so
fi
exec "$@"
