"""Kernels that adapt, on learned features: regressed in every window, or mixed from a bank; and the lean body that may
follow them.
"""
