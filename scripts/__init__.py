"""What `make` runs. Nothing here is installed with the two programs, and neither program imports it."""
