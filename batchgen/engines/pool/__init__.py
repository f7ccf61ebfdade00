"""An engine of engines: worker processes on one machine that share one queue of rows."""
