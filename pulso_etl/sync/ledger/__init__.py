"""Records what was loaded and when: the history, the readings of each day, the watermark, and the locks of the writers."""
