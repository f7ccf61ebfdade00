"""The pipeline on a Ray cluster: inputs cut into parts, a file for each in the output folder.

Each worker runs the same pipeline as one machine does; what is here cuts, hands out, and tidies up after faults.
"""
