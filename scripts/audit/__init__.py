"""Which GPUs and drivers a wheel runs on, read out of the wheel."""
