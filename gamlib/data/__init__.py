"""Data sets, their images, and the batches that are made of them."""
