"""What padding and masks do, shown and proved: inspector, mistakes made on purpose, verify, the HTML page."""
