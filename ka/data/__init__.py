"""Scenes: what is observed of them, how they are read, simulated and cut into patches."""
