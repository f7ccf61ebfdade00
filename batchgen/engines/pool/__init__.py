"""Engine of engines: worker processes on one machine over one queue of rows."""
