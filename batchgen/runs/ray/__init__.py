"""The pipeline on a Ray cluster: inputs are cut into parts, and the output folder gets one file per part.

Each worker runs the same pipeline as a single machine; this package cuts, distributes, and recovers from faults.
"""
