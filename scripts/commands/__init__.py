"""One file per nox session: reads argv and the environment, calls a stage, shows its result."""
