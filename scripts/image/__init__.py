"""The runtime image: its context, base, engines and checks."""
