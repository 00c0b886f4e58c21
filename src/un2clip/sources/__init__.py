"""Where weights and data come from: the hub and files, verified; benchmark data; images by their URLs."""
