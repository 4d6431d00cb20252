"""Measures the load path and other ways to load the same rows, the memory, and the time of a refresh from launch to success."""
