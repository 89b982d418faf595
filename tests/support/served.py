"""The package's scripted server under the name the tests use, and a certificate for TLS."""

import ssl
from pathlib import Path

from servescope.serve.scripted import MODELS, ScriptedServer, healthy

Served = ScriptedServer
CERTIFICATE = Path(__file__).with_name("tls") / "cert.pem"
"""Self-signed, for localhost and 127.0.0.1, good for a century; its key guards nothing."""

__all__ = ["CERTIFICATE", "MODELS", "Served", "healthy", "tls_context"]


def tls_context():
    """What a server over TLS needs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    return context
