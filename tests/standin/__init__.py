"""A stand-in for nvcc 12.8 and a command that configures the production build with it."""
