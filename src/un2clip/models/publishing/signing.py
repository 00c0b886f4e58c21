"""A signature over all files of a folder, by OpenSSF's model-signing: with a key, or keyless by Sigstore."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from un2clip.errors import UserError, cause
from un2clip.models.publishing.layout import OF_THE_HUB, SIGNATURE

#: Variable with the password of the private key, where it has one.
PASSWORD = "UN2CLIP_KEY_PASSWORD"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """By whom a signature must be: the holder of a key, or an identity that an OpenID issuer vouches for."""

    key: Path | None = None
    identity: str = ""
    issuer: str = ""

    def __post_init__(self) -> None:
        if bool(self.identity) != bool(self.issuer) or (self.key and self.identity):
            raise UserError("a signature is checked by --key, or by --identity and --issuer together")

    def __bool__(self) -> bool:
        return bool(self.key or self.identity)


def sign(folder: Path, key: Path | None) -> None:
    """Write model.sig into a folder.

    Args:
        folder: whose files are complete: what is added later does not verify.
        key: private key in PEM, on an elliptic curve; None for a keyless signature, which asks Sigstore's public
            service, and a person for a login.

    Raises:
        UserError: model-signing is not installed, or does not sign.
    """
    modules = _library()
    hashing = modules.hashing.Config().set_ignored_paths(paths=[Path(SIGNATURE), *map(Path, OF_THE_HUB)])
    config = modules.signing.Config().set_hashing_config(hashing)
    try:
        if key:
            config.use_elliptic_key_signer(private_key=key, password=os.environ.get(PASSWORD))
        else:
            config.use_sigstore_signer()
        config.sign(folder, folder / SIGNATURE)
    except Exception as error:  # of the library, of cryptography, of the network
        raise UserError(f"cannot sign {folder.name}: {cause(error)}") from None


def check(folder: Path, trust: Trust) -> None:
    """Hold a folder against its signature; every file must be in it.

    Raises:
        UserError: it does not fit, or model-signing is not installed.
    """
    config = _library().verifying.Config()
    try:
        if trust.key:
            config.use_elliptic_key_verifier(public_key=trust.key)
        else:
            config.use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.issuer)
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # as above
        if changed := re.search(r"Hash mismatch for \\?'([^'\\]+)", str(error)):  # it repeats hashes as raw bytes
            raise UserError(f"{changed[1]} is not the file that was signed") from None
        raise UserError(cause(error) or type(error).__name__) from None


def _library() -> Any:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise UserError(f"signatures need model-signing ({error}): pip install 'un2clip[publish]'") from None
    return model_signing
