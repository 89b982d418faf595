"""TLS over memory, so that the encrypted bytes come by `recvmsg` with the kernel's stamp."""

from __future__ import annotations

import re
import ssl
from collections.abc import Generator

from servescope.errors import BadInput

READ_BYTES = 65536
_NOISE = re.compile(r"^\[[^]]*\] |\s*\(_ssl\.c:\d+\)$")
"""What OpenSSL's own errors begin and end with."""


class Tls:
    """One side of a TLS connection as functions of bytes."""

    __slots__ = ("_fault", "_incoming", "_object", "_outgoing")

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._fault: ssl.SSLError | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

    def handshake(self) -> Generator[bytes, bytes, None]:
        """Yields what to send, is given what came; `unsent` is the last word. Raises SSLError."""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                came = yield self._outgoing.read()
            else:
                return
            if not came:
                raise ssl.SSLError("closed by the server in the handshake")
            self._incoming.write(came)

    def encrypt(self, data: bytes) -> bytes:
        """What to send for this. Raises SSLError."""
        self._object.write(data)
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> bytes:
        """Plain bytes of what was received. Raises SSLError, at the next call if some are whole."""
        if self._fault is not None:
            raise self._fault
        self._incoming.write(data)
        plain = []
        try:
            while piece := self._object.read(READ_BYTES):
                plain.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as error:
            if not plain:
                raise
            self._fault = error
        return b"".join(plain)

    def unsent(self) -> bytes:
        """What TLS itself has to say: the end of a handshake, new keys, a handshake anew."""
        return self._outgoing.read() if self._outgoing.pending else b""


def tls_context(
    ca_file: str | None,
    *,
    verify: bool,
    client_cert: str | None = None,
    client_key: str | None = None,
) -> ssl.SSLContext:
    """How the server's certificate is judged, and which one it is shown. Raises BadInput."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise BadInput("--ca-file", ca_file, f"want PEM certificates ({error})") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    if client_cert is not None:
        try:
            context.load_cert_chain(client_cert, client_key, password=_no_password)
        except OSError as error:
            said = error.strerror or error.args[0]
            if client_key is not None:
                want = f"want the key of the certificate {client_cert}, in PEM ({said})"
                raise BadInput("--client-key", client_key, want) from None
            want = f"want a PEM certificate and its key, here or in --client-key ({said})"
            raise BadInput("--client-cert", client_cert, want) from None
    return context


def words(error: ssl.SSLError) -> str:
    """What went wrong, and what would help."""
    text = _NOISE.sub("", str(error))
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = "trust who signed it with --ca-file, or do not verify it: --insecure"
    elif "alert" in text.lower():
        advice = "the server may want a certificate that it trusts: --client-cert, --client-key"
    else:
        advice = "does the server speak TLS there? If not, want http://"
    return f"{text}; {advice}"


def _no_password() -> str:
    """A run asks nobody anything; without this OpenSSL would ask on the terminal."""
    raise ssl.SSLError("the key is under a password, which cannot be given")
