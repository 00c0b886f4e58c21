"""Take the champion back: the alias returns to the version before it, and the withdrawn one says why."""

from un2clip.errors import UserError
from un2clip.models.registry import JUDGED_AGAINST, ROLLED_BACK, Registry, Version
from un2clip.tracking import store


def rollback(registered_model: str, reason: str, to: str = "") -> Version:
    """Move the alias champion back, and keep the reason on the version that had it.

    The reason stands in its description and in its tag ROLLED_BACK; while it has that tag, `promote` does not make it
    champion again, whatever the gate says.

    Args:
        registered_model: name in the registry.
        reason: one line for whoever looks at the version later.
        to: number of the version that becomes champion; "" for the one that the champion had to beat.

    Raises:
        UserError: nobody is champion, there was none before, or the version is gone.
    """
    if not (said := " ".join(reason.split())):
        raise UserError("--reason must say why, in a line: it is what the next reader has")
    registry = Registry(registered_model)
    with store.as_user_error(), store.alone(registry.client):
        version = registry.version(registry.resolve_alias("champion"))
        target = to or version.tags.get(JUDGED_AGAINST, "")
        if not target:
            raise UserError(f"version {version.number} had no champion before it; --to=NUMBER names a version")
        if target == version.number:
            raise UserError(f"version {target} is the champion already")
        if not registry.exists(target):
            raise UserError(f"{registered_model} has no version {target} any more; --to=NUMBER names another")
        # before the alias moves, so that no promotion comes in between
        registry.client.set_model_version_tag(registered_model, version.number, ROLLED_BACK, said)
        before = registry.client.get_model_version(registered_model, version.number).description or ""
        sentence = f"Rolled back: {said}"
        if sentence not in before:
            registry.describe(version.number, f"{sentence}\n\n{before}".strip())
        registry.set_alias("champion", target)
    print(
        f"{registered_model} version {target} is the champion again; version {version.number} was rolled back: {said}"
    )
    return registry.version(target)
