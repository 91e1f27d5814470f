"""wheelsmith: build, prove and publish vLLM CUDA wheels.

One module per stage, in the order data flows through them (see docs/architecture.md):
recipe -> fetch -> patch -> toolchain -> compile -> package -> prove -> wheel.
"""

import signal
import sys

if sys.argv[:1] == ["-m"]:  # a command is being loaded: until it listens to signals, Ctrl-C ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
