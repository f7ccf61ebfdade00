"""What there is: memory limits, processors, threads and the heap, and what earlier runs here showed.

Measures and reads; decides nothing.
"""
