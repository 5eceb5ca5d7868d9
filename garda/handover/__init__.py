"""Knowledge as a signed package."""
