"""`python -m batchgen`."""

from batchgen.cli import app

if __name__ == "__main__":
    app(prog_name="batchgen")
