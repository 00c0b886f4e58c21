"""What only a cluster needs: its first and last task, several nodes, what Kubeflow shows.

The components call it, since a component can import nothing but what its image holds. kubernetes and kubeflow are
imported in scheduling.py and trainjob.py alone.
"""
