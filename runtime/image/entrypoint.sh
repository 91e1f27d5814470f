#!/bin/sh
# Looks at the GPU, gives any uid a name and writable caches, then becomes the command (tini, its parent, passes
# signals on). `--version` and `--help` need no GPU. WHEELSMITH_GPU_CHECK=0 leaves the GPU unchecked.
set -eu
here=$(dirname "$0")
case "$*" in
"vllm "* | "python3 -m worker.handler"*) serves=yes ;;
*) serves=no ;; # somebody's own command
esac
asked=
if [ $serves = yes ]; then
    for word in "$@"; do
        case "$word" in
        --) break ;;
        -h | --help | --help=*) asked=help ;;
        --version) exec python3 "$here/gpu.py" --version ;;
        esac
    done
fi
for folder in "$HF_HOME" "$VLLM_CACHE_ROOT" "$VLLM_CONFIG_ROOT" "$TRITON_CACHE_DIR" "$TORCHINDUCTOR_CACHE_DIR"; do
    mkdir -p "$folder" || { echo "error: $folder is not writable for uid $(id -u): mount a volume or tmpfs on /cache" >&2; exit 11; }
done
if ! getent passwd "$(id -u)" > /dev/null; then
    # An arbitrary uid (Kubernetes, OpenShift) has no entry, and getpwuid() raises in Python.
    { cat /etc/passwd; echo "vllm-$(id -u):x:$(id -u):$(id -g):vLLM:$HOME:/usr/sbin/nologin"; } > /tmp/passwd
    export NSS_WRAPPER_PASSWD=/tmp/passwd NSS_WRAPPER_GROUP=/etc/group LD_PRELOAD=libnss_wrapper.so
fi
if [ "$asked" = help ]; then
    if [ "$1" = vllm ] && ! python3 "$here/gpu.py" --quiet; then exec python3 "$here/help.py" "$@"; fi
elif [ $serves = yes ] && [ "${WHEELSMITH_GPU_CHECK:-1}" != 0 ]; then
    python3 "$here/gpu.py"
    export WHEELSMITH_GPU_CHECK=0 # the worker need not look again
fi
exec "$@"
