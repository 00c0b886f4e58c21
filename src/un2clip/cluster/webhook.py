"""One message to a webhook when a run failed, or when its challenger passed the gate.

The address is a secret (whoever knows it may post), so no message and no error repeats it.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping

from un2clip.errors import shown

#: Variable with the address, https:// or http://, that takes `{"text": ...}`, as Slack's and Mattermost's do.
VARIABLE = "UN2CLIP_WEBHOOK"
SECONDS = 15.0  # for the answer


def message(run: str, tags: Mapping[str, str], sentences: list[str]) -> str:
    """What is said of a run that is over; "" where nobody needs to hear it.

    Args:
        run: its key.
        tags: outcome, and where it is not `succeeded`, failed and message.
        sentences: the gate's, if its challenger passed.
    """
    if tags.get("outcome") == "failed":
        where = f" in {tags['failed']}" if tags.get("failed") else ""
        return shown(f"un2clip run {run} failed{where}: {tags.get('message') or 'no stage said why'}")
    if tags.get("outcome") == "succeeded" and sentences:
        return "\n".join(shown(each) for each in (f"un2clip run {run}: a challenger passed the gate.", *sentences))
    return ""


def post(text: str) -> str:
    """Send a text; return why it did not arrive, "" where it did, or where no webhook is set or there is no text."""
    address = os.environ.get(VARIABLE, "").strip()
    if not address or not text:
        return ""
    if not address.startswith(("https://", "http://")):
        return f"{VARIABLE} is no address of http"
    try:
        request = urllib.request.Request(
            address, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except Exception as error:  # the error's own words may repeat the address
        return type(error).__name__
