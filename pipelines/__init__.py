"""The Kubeflow pipeline: its graph, its resources, and the ways to run it; see README.md."""
