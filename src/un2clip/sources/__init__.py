"""Where weights and data come from: files and the hub, verified; benchmark data; images by URL."""
