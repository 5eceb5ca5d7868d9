"""No torch, no image: errors, files, settings, seeds, signals."""
