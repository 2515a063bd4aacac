"""Mutants of who is asking, and the server with tokens of every kind that they are made of."""

from __future__ import annotations

import time
from pathlib import Path

from blockproto.identity.certificates import CERTIFICATE_NAME, KEY_NAME, own_certificate, pin_of_file
from blockproto.identity.principals import Register, change
from blockproto.identity.realm import EVERYTHING
from blockproto.wire import Scopes

from .edits import Mutant

SERVER = ("server",)
CLIENT = ("client",)
ADMISSION, REALM, CERTIFICATES = (
    "identity/connection_auth.py",
    "identity/realm.py",
    "identity/certificates.py",
)
SERVICE, POLICY = "transfer/file_service.py", "identity/auth_policy.py"
TRUST, LINK_TLS, INTRODUCING = "client_side/trust.py", "connection/tls.py", "client_side/authenticate.py"
CHAPTERS = ("BP1-TLS", "BP1-AUT", "BP1-PRN")
STATE = ".blockproto"
QUOTA = 3 << 20
CONNECTIONS_EACH = 24
"""More than cases that run beside each other take, and fewer than the case of PRN-009 tries."""


def make_cast(folder: Path) -> tuple[tuple[str, ...], bytes]:
    """Make a certificate and tokens of every kind in a folder's state; the tokens, and the pin."""
    state = folder / STATE
    certificate, _ = own_certificate(state)
    now_ms = time.time_ns() // 1_000_000
    tokens: list[str] = []

    def add(register: Register) -> Register:
        for name, scopes, quota, expires_ms in (
            ("alice", EVERYTHING, None, None),
            ("bob", EVERYTHING, None, None),
            ("reader", Scopes.READ, None, None),
            ("writer", Scopes.WRITE, None, None),
            ("small", EVERYTHING, QUOTA, None),
            ("former", EVERYTHING, None, now_ms - 1),
        ):
            register, token = register.with_token(
                name, folder=f"homes/{name}", quota=quota, scopes=scopes, now_ms=now_ms, expires_ms=expires_ms
            )
            tokens.append(token)
        return register

    change(state, add)
    return tuple(tokens), pin_of_file(certificate)


def serve_options(folder: Path) -> list[str]:
    """What ``serve`` has to be told so that it speaks TLS on loopback, too, and soon has enough of one principal."""
    state = folder / STATE
    return [
        "--cert",
        str(state / CERTIFICATE_NAME),
        "--key",
        str(state / KEY_NAME),
        "--connections-each",
        str(CONNECTIONS_EACH),
    ]


ALL = [
    Mutant("tls-is-not-recognised", "TLS-001", "serving/detect_rules.py",
           "if first.startswith(TLS_HANDSHAKE):\n        return Detection.TLS", "if first.startswith(TLS_HANDSHAKE):\n        return Detection.NEITHER", SERVER),
    Mutant("tls-1.2-will-do", "TLS-001", CERTIFICATES,
           "context.minimum_version = ssl.TLSVersion.TLSv1_3\n    context.num_tickets = 0",
           "context.minimum_version = ssl.TLSVersion.TLSv1_2\n    context.num_tickets = 0", SERVER),
    Mutant("another-application-protocol", "TLS-002", CERTIFICATES,
           "context.num_tickets = 0\n    context.set_alpn_protocols([ALPN])", "context.num_tickets = 0\n    context.set_alpn_protocols(['h2'])", SERVER),
    Mutant("no-features", "AUT-001", POLICY,
           "return FEATURE_AUTH if self.anonymous is not None else FEATURE_AUTH | FEATURE_AUTH_REQUIRED", "return 0", SERVER),
    Mutant("auth-required-is-not-said", "AUT-001", POLICY,
           "return FEATURE_AUTH if self.anonymous is not None else FEATURE_AUTH | FEATURE_AUTH_REQUIRED", "return FEATURE_AUTH", SERVER),
    Mutant("auth-answered-by-nobody", "AUT-002", ADMISSION,
           "principal=realm.principal,", "principal=bytes(16),", SERVER),
    Mutant("auth-answered-twice", "AUT-002", ADMISSION,
           "return Result(PRINCIPAL_KIND, (self._item(grant),))", "return Result(PRINCIPAL_KIND, (self._item(grant),) * 2)", SERVER),
    Mutant("auth-without-effect", "AUT-003", ADMISSION,
           "self._grant = grant\n        return Result", "return Result", SERVER),
    Mutant("nobody-is-asked", "AUT-004", ADMISSION,
           'raise Unauthenticated(WANTS_TLS if self.policy is DENY_ALL else WANTS_TOKEN)', "return Realm()", SERVER),
    Mutant("strangers-may-look", "AUT-004", ADMISSION,
           "            if realm is None:\n                raise", "            if isinstance(message, (List, Fetch)):\n                return Realm()\n            if realm is None:\n                raise", SERVER),
    Mutant("full-limits-for-strangers", "AUT-005", "protocol/session.py",
           "if not self._admitted:\n            return", "if False:\n            return", SERVER),
    Mutant("early-limits-for-ever", "AUT-005", "protocol/session.py",
           "            self._admitted = True\n            self._use_limits()", "            self._admitted = True", SERVER),
    Mutant("damage-is-told", "AUT-006", ADMISSION,
           "        if grant is None:\n            raise Unauthenticated\n",
           "        if grant is None:\n            raise Unauthenticated('damaged' if len(message.credential) != 62 else 'unknown')\n", SERVER),
    Mutant("ended-is-unknown", "AUT-006", ADMISSION, "raise CredentialExpired\n", "raise Unauthenticated\n", SERVER),
    Mutant("tries-without-end", "AUT-007", ADMISSION, "return self._refusals >= REFUSALS_MAX", "return False", SERVER),
    Mutant("a-refused-auth-shuts-out", "AUT-007", ADMISSION,
           "self._refusals += 1\n            raise", "self._refusals += 1\n            self._grant = None\n            raise", SERVER),
    Mutant("a-connection-changes-hands", "AUT-008", ADMISSION,
           "if self._grant is not None and self._grant.realm.principal != grant.realm.principal:", "if False:", SERVER),
    Mutant("one-auth-for-a-connection", "AUT-008", ADMISSION,
           "if self._grant is not None and self._grant.realm.principal != grant.realm.principal:", "if self._grant is not None:", SERVER),
    Mutant("sourceids-of-everybody", "PRN-001", SERVICE,
           "self._key(sourceid), inside, attempt", "UploadKey(bytes(16), sourceid), inside, attempt", SERVER),
    Mutant("receipts-of-everybody", "PRN-001", SERVICE,
           "begin_brief(self._key(sourceid), self", "begin_brief(UploadKey(bytes(16), sourceid), self", SERVER),
    Mutant("one-folder-for-all", "PRN-002", "identity/principals.py",
           "folder=None if principal.folder is None else SafeName.parse(principal.folder),", "folder=None,", SERVER),
    Mutant("names-with-the-servers-folders", "PRN-002", REALM,
           'return stored.removeprefix(self.above) if stored.startswith(self.above) else stored.rpartition("/")[2]', "return stored", SERVER),
    Mutant("a-cursor-says-where-the-folder-lies", "PRN-002", REALM, "return cursor.removeprefix(self.above)", "return cursor", SERVER),
    Mutant("ids-open-everything", "PRN-003", SERVICE,
           "return engine.store.open_file(None, file_id, realm.folder)", "return engine.store.open_file(None, file_id, None)", SERVER),
    Mutant("foreign-uploads-are-cancelled", "PRN-003", SERVICE,
           "await self._engine.uploads.discard(self._key(sourceid))",
           "await self._engine.uploads.discard(next((key for key in self._engine.uploads._live if key.sourceid == sourceid), "
           "self._key(sourceid)))", SERVER),
    Mutant("a-writer-compares", "PRN-010", SERVICE, "return Scopes.READ in self.realm.scopes", "return True", SERVER),
    Mutant("scopes-are-for-show", "PRN-004", REALM, "if scope not in self.scopes:", "if False:", SERVER),
    Mutant("readers-see-uploads", "PRN-004", "serving/handlers/requests.py",
           "if isinstance(message, List) and message.kind == ListKind.FILES:", "if isinstance(message, List):", SERVER,
           (("serving/handlers/requests.py", "writer = self._service.writer()\n\n        def page(",
             "writer = self._service._writer\n\n        def page("),)),
    Mutant("quota-is-for-show", "PRN-005", "transfer/quota.py", "if length > self.room(key):", "if False:", SERVER),
    Mutant("no-room-is-told", "PRN-005", "transfer/quota.py", "current=max(0, account.room(key))", "current=None", SERVER),
    Mutant("who-spoke-last-goes", "PRN-009", "serving/connection_limits.py",
           "longest = min(members, key=lambda one: one.heard_s)",
           "longest = max(members, key=lambda one: one.heard_s)", SERVER),
    Mutant("who-comes-back-is-kept-out", "PRN-009", "serving/connection_limits.py",
           "longest = min(members, key=lambda one: one.heard_s)", "longest = member", SERVER),
    Mutant("goes-on-whatever-was-chosen", "TLS-002", LINK_TLS,
           "if inside.tls.selected_alpn_protocol() != alpn:", "if False:", CLIENT),
    Mutant("offers-no-protocol", "TLS-002", CERTIFICATES,
           "context.minimum_version = ssl.TLSVersion.TLSv1_3\n    context.set_alpn_protocols([ALPN])",
           "context.minimum_version = ssl.TLSVersion.TLSv1_3", CLIENT),
    Mutant("names-no-server", "TLS-002", LINK_TLS,
           "TlsEndpoint(endpoint, context, server_hostname=host)", "TlsEndpoint(endpoint, context)", CLIENT),
    Mutant("any-certificate-will-do", "TLS-003", TRUST, "if pin == expected:", "if True:", CLIENT),
    Mutant("every-authority-will-do", "TLS-003", CERTIFICATES,
           "context.load_verify_locations(authorities)",
           "context.check_hostname, context.verify_mode = False, ssl.CERT_NONE", CLIENT),
    Mutant("every-host-will-do", "TLS-003", CERTIFICATES,
           "context.load_verify_locations(authorities)",
           "context.check_hostname = False\n            context.load_verify_locations(authorities)", CLIENT),
    Mutant("without-tls-if-need-be", "TLS-005", TRUST,
           "        if expected:\n            return await self._handshake(expected)",
           "        if expected:\n            try:\n                return await self._handshake(expected)\n            except Exception:\n"
           "                return await connect_tcp(self._host, self._port, self._server)", CLIENT),
    Mutant("tls-1.2-is-offered", "TLS-011", CERTIFICATES,
           "context.minimum_version = ssl.TLSVersion.TLSv1_3\n    context.set_alpn_protocols([ALPN])",
           "context.minimum_version = ssl.TLSVersion.TLSv1_2\n    context.set_alpn_protocols([ALPN])", CLIENT),
    Mutant("never-says-who-it-is", "TLS-010 AUT-002", INTRODUCING,
           "if self.token is not None and connection.lost is None:", "if False:", CLIENT),
    Mutant("says-who-it-is-once", "AUT-002", INTRODUCING,
           "            connection.post(stream, Auth(self.token))",
           "            connection.post(stream, Auth(self.token))\n            self.token = None", CLIENT),
    Mutant("a-refused-auth-is-not-heard", "AUT-002", INTRODUCING,
           "if message.code != Code.UNSUPPORTED:", "if False:", CLIENT),
    Mutant("full-limits-before-the-answer", "AUT-005", "protocol/session.py",
           "self._admitted = not hello.features & FEATURE_AUTH_REQUIRED", "self._admitted = True", CLIENT),
]  # fmt: skip

NONE = {
    "BP1-TLS-007": "what carries a file knows nothing of TLS: the mutants of BP1-END-012 break this, too",
    "BP1-TLS-009": "wants a server to which this machine is another one; tests/connection/test_tls.py makes one",
    "BP1-AUT-009": "wants a clock and a revocation; tests/identity/test_connection_auth.py has both",
    "BP1-PRN-008": "a server that asks everybody has no anonymous principal; whoever breaks it passes no case of CORE",
}
