"""Measures the load path beside other ways of loading the same rows, its memory, and a refresh's time from launch to success."""
