"""The machine: memory limits, processors, threads and the heap, and measurements of earlier runs.

Measures and reads; decides nothing.
"""
