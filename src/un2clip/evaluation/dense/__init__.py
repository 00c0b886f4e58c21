"""Open-vocabulary segmentation: an embedding for every patch, compared with the names of the classes.

features.py makes the embeddings of both, windows.py slides over a picture, protocols.yaml has everybody's settings,
layouts.py reads data, names.py the classes' names. The benchmark itself is evaluation/benchmarks/segmentation.py.
"""
