"""What goes into the runtime image."""
