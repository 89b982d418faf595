"""The metrics page of a target, reached as its load reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from servescope.client.address import Address
from servescope.client.secret import Secret
from servescope.client.tls import tls_context
from servescope.collect import Collector, Reading
from servescope.collect.prometheus import fetch, source_of


class TargetPage(Collector, frozen=True, tag="target's page"):
    """A page of metrics at a target itself, which alone is shown the key of its load."""

    address: Address
    path: str
    """With its query."""
    timeout_s: float = 1.0
    key: Secret | None = None
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    insecure: bool = False

    @property
    def source(self) -> str:
        """As the same page is called where the user names it."""
        return source_of(self.address, self.path)

    def reader(self) -> Callable[[], Iterable[Reading]]:
        """Raises BadInput where the certificates cannot be used."""
        context = None
        if self.address.scheme == "https":
            context = tls_context(
                self.ca_file,
                verify=not self.insecure,
                client_cert=self.client_cert,
                client_key=self.client_key,
            )
        headers = {}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key.value}"
        elif self.address.basic is not None:
            headers["Authorization"] = f"Basic {self.address.basic.value}"
        secrets = [*self.address.secrets, *([] if self.key is None else [self.key])]

        def hide(text: str) -> str:
            for secret in secrets:
                text = secret.hide(text)
            return text

        return lambda: fetch(
            self.address,
            self.path,
            context=context,
            headers=headers,
            timeout_s=self.timeout_s,
            hide=hide,
        )
