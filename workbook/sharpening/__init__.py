"""Sharpening of image files: pairs of them, in tiles, with a picture of what came out."""
