#!/opt/vllm/bin/python
"""HEALTHCHECK: is the engine ready? Exit code 0 when GET /health answers 200, else 1."""

import os
import sys
import urllib.error
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('VLLM_PORT', '8000')}/health"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not answer for this container
try:
    with opener.open(url, timeout=8) as answer:
        sys.exit(answer.status != 200)
except (OSError, urllib.error.URLError) as error:
    sys.stderr.write(f"{url}: {error}\n")
    sys.exit(1)
