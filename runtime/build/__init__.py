"""What runs while the image is built, from a mount: it is in no layer."""
