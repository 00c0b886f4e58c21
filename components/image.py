"""The one place with the image's name.

Its tag is the package's version: Kubeflow's cache key holds the image and not the code in it, so a change
of code is seen only through a new tag. A run on a cluster names its own registry: `image=REGISTRY/un2clip:TAG`.
"""

from un2clip import __version__

IMAGE = f"un2clip:{__version__}"
