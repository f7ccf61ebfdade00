"""What must hold whatever happens: kills, full disks, races, hostile input. `make torture` tries and counts it.

Each check starts the real command line as a user does, mostly with a fake engine (`fake.py`), so that a run takes a
second. Not part of the wheel.
"""
