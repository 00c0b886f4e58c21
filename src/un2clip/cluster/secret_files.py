"""Secrets that are mounted as files, brought into the environment of a task before it begins.

As files they cost a pod one volume each; as variables, one reference a key, which Kubeflow repeats in every node of a
task's status. Kubeflow's own launcher, which starts the task, does not see them.
"""

import os
from pathlib import Path

from un2clip.files.texts import read_text

#: Where each Secret is mounted, below it: a folder named as the pipeline's parameter that names the Secret.
MOUNTED = "/run/secrets/un2clip"
#: Keys of each Secret, which become variables of the same name; no other key does, whatever the Secret holds.
SECRETS = {
    "mlflow_secret": (
        "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
        "UN2CLIP_WEBHOOK",
    ),
    "hub_secret": ("HF_TOKEN",),
    "s3_secret": (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
        "MLFLOW_S3_ENDPOINT_URL",
    ),
}  # fmt: skip


def read_secrets(mounted: str = MOUNTED) -> None:
    """Set a variable for each known key of each mounted Secret; without the Secret, or the key, it stays as it is.

    The line end with which a Secret made from a file often ends is no part of a value.
    """
    for name, keys in SECRETS.items():
        for key in keys:
            path = Path(mounted, name, key)
            if path.is_file():
                os.environ[key] = read_text(path).rstrip("\n")
