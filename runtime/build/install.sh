#!/bin/sh
# Installs a file of requirements into /opt/vllm: `install.sh FILE SHA256`. Runs while the image is built, from a mount.
# Index URLs, proxies and certificates are build secrets. buildah does not look into mounts to know whether a step is
# the same: the digest, an argument of the step, tells it, and is checked.
set -eu
file=$1 sha256=$2 here=$(dirname "$0")
started=$(date +%s)
set -a; if [ -s /run/secrets/index ]; then . /run/secrets/index; fi; set +a
if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi
# TMPDIR=/opt: uv unpacks beside the environment and renames, instead of copying gigabytes. Bytecode is compiled now,
# and never checked again, because nothing may be written to a read-only root later.
export TMPDIR=/opt UV_NO_CACHE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=300
export PYC_INVALIDATION_MODE=UNCHECKED_HASH
echo "$sha256  $file" | sha256sum --check --quiet
if grep -q '^[A-Za-z0-9]' "$file"; then
    "$here/uv" pip install --quiet --compile-bytecode --python /opt/vllm/bin/python --require-hashes --no-deps \
        --only-binary :all: -r "$file"
fi
if [ "${TRIM:-1}" = 1 ]; then python3 "$here/trim.py" /opt/vllm; fi
echo "wheelsmith: $(basename "$file") took $(($(date +%s) - started)) s"
