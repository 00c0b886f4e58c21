"""What only a cluster needs: the first task and the last, a training on several machines, what Kubeflow is shown.

The components call it, since a component can import nothing but what its image holds. kubernetes and kubeflow are
imported in scheduling.py and trainjob.py alone.
"""
