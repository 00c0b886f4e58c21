"""The Kubeflow dialect of the stages: a signature and one call each; see README.md."""
