"""One loop on any device."""
