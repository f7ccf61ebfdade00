"""The site: docs/ and generated reference pages, built by Zensical. `make site`, `make site-check`."""
