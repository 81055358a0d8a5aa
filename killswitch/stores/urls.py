"""URLs of stores: what may be written, and what it means. Nothing here connects or reads a store.

::

    etcd://[USER:PASSWORD@]HOST:PORT,HOST:PORT              etcds:// over TLS
    redis://[USER:PASSWORD@]HOST:PORT[/DB]                  rediss:// over TLS
    redis+sentinel://[USER:PASSWORD@]HOST:PORT,.../NAME[/DB]    rediss+sentinel:// over TLS
    zookeeper://[USER:PASSWORD@]HOST:PORT,.../CHROOT        zookeeper+tls:// over TLS
    embedded:///DIRECTORY
    memory://NAME

Options follow a question mark. Passwords and certificates are best left in files, which a list of processes does not
show: ``?username=agent&password_file=/etc/killswitch/password&ca_file=/etc/killswitch/ca.pem``. What is special in a
user name or password (``@ : / ? # %``) is percent-encoded.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

PORT_MAX = 65_535

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
# A name or an IPv4 address; whether there is such a host only the network can tell.
_HOST = re.compile(r"[^\s\x00-\x1f\x7f\\/?#@:\[\]]+")
_IPV6_HOST = re.compile(r"\[([0-9A-Fa-f:.]+)(%[\w.~-]+)?\]")

FORMS = (
    "etcd://HOST:PORT,HOST:PORT, redis://HOST:PORT, redis+sentinel://HOST:PORT,HOST:PORT/NAME, "
    "zookeeper://HOST:PORT,HOST:PORT/CHROOT, embedded:///DIRECTORY or memory://NAME"
)


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What the URLs of one scheme look like."""

    example: str
    server: str = ""
    default_port: int | None = None
    tls: bool = False
    options: frozenset[str] = frozenset()
    one_server: bool = False


_LOGIN = frozenset({"username", "password_file"})
_TLS = frozenset({"ca_file", "cert_file", "key_file", "server_name"})

_REDIS = _LOGIN | {"wait_replicas"}
_SENTINELS = _REDIS | {"sentinel_username", "sentinel_password_file"}

_SCHEMES: Mapping[str, _Scheme] = {
    "etcd": _Scheme("etcd://HOST:PORT or etcd://HOST:PORT,HOST:PORT", "an etcd server", 2379, False, _LOGIN),
    "etcds": _Scheme("etcds://HOST:PORT?ca_file=/PATH", "an etcd server", 2379, True, _LOGIN | _TLS),
    "redis": _Scheme("redis://HOST:PORT/DB", "a Redis server", 6379, False, _REDIS, one_server=True),
    "rediss": _Scheme(
        "rediss://HOST:PORT/DB?ca_file=/PATH", "a Redis server", 6379, True, _REDIS | _TLS, one_server=True
    ),
    "redis+sentinel": _Scheme("redis+sentinel://HOST:PORT,HOST:PORT/NAME", "a Sentinel", 26_379, False, _SENTINELS),
    "rediss+sentinel": _Scheme(
        "rediss+sentinel://HOST:PORT,HOST:PORT/NAME?ca_file=/PATH", "a Sentinel", 26_379, True, _SENTINELS | _TLS
    ),
    "zookeeper": _Scheme("zookeeper://HOST:PORT,HOST:PORT/CHROOT", "a ZooKeeper server", 2181, False, _LOGIN),
    "zookeeper+tls": _Scheme(
        "zookeeper+tls://HOST:PORT/CHROOT?ca_file=/PATH", "a ZooKeeper server", 2281, True, _LOGIN | _TLS
    ),
    "embedded": _Scheme("embedded:///absolute/directory, with three slashes"),
    "memory": _Scheme("memory://NAME"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who we are to a store. The password is never shown by ``repr``."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for TLS, each checked to be readable.

    Attributes:
        ca_file: whom to trust; ``None`` for the authorities that the system trusts.
        cert_file: certificate that we show, with ``key_file``, its private key; both or neither.
        server_name: name that the server's certificate must bear, ``None`` for the host that was connected to.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """A URL of a store, understood.

    Attributes:
        scheme: such as ``etcds``.
        servers: ``host:port`` of each; IPv6 hosts in brackets. Empty for ``embedded`` and ``memory``.
        path: what follows the servers, percent-decoded, beginning with a slash unless it is empty.
        login: for the store; ``None`` when nobody is named.
        sentinel_login: for the Sentinels themselves.
        tls: ``None`` for connections in the clear.
        wait_replicas: how many replicas of Redis must confirm; ``None`` when not said.
    """

    scheme: str
    servers: tuple[str, ...] = ()
    path: str = ""
    login: Login | None = None
    sentinel_login: Login | None = None
    tls: TlsFiles | None = None
    wait_replicas: int | None = None

    @property
    def address(self) -> str:
        """The URL without its secrets and options, for people."""
        return f"{self.scheme}://{','.join(self.servers)}{self.path}"


def parse_store_url(url: str) -> StoreUrl:
    """Understand the URL of a store and read the files that hold its passwords.

    Raises:
        ValueError: not understood, or a file cannot be read. The sentence says what to write and repeats no secret.
    """
    parts = _split(url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None:
        raise ValueError(f"{parts.scheme}:// is no store that is known here; write {FORMS}")
    if parts.fragment:
        raise ValueError(f"the {parts.scheme} store takes nothing after '#' (write %23); write {scheme.example}")
    options = _options(parts, scheme)
    if scheme.default_port is None:
        return StoreUrl(scheme=parts.scheme, path=unquote(parts.authority + parts.path))
    credentials, _, servers = parts.authority.rpartition("@")
    return StoreUrl(
        scheme=parts.scheme,
        servers=_servers(parts.scheme, servers, scheme, scheme.default_port),
        path=unquote(parts.path) if parts.path != "/" else "",
        login=_login(parts.scheme, credentials, options, ""),
        sentinel_login=_login(parts.scheme, "", options, "sentinel_"),
        tls=_tls_files(options) if scheme.tls else None,
        wait_replicas=_count(options, "wait_replicas"),
    )


def host_and_port(server: str) -> tuple[str, int]:
    """Both parts of one of a URL's ``servers``, as the kernel wants them: without the brackets of IPv6."""
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def without_secrets(url: str) -> str:
    """The URL as it may be shown: a user and password in it become ``***``."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***"
    # The last @ of all: whoever wrote a ? or @ into a password unencoded must not find it in a log.
    _, at, shown = rest.rpartition("@")
    return f"{scheme}://{'***@' if at else ''}{shown}"


@dataclass(frozen=True, slots=True)
class _Parts:
    """A URL in its five parts, as RFC 3986 divides it, still encoded."""

    scheme: str
    authority: str
    path: str
    query: str
    fragment: str


def _split(url: str) -> _Parts:
    """Divide a URL at its marks.

    Not by ``urllib``: what it takes for an authority differs between patch versions of Python, and in none of them does
    it know a list of hosts.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme.lower()):
        # Not repeated: what somebody put here by mistake may be a password.
        raise ValueError(f"the URL of a store begins with a scheme and '://'; write {FORMS}")
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    return _Parts(scheme.lower(), authority, slash + path, query, fragment)


def _options(parts: _Parts, scheme: _Scheme) -> dict[str, str]:
    options: dict[str, str] = {}
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(f"the options of a {parts.scheme} URL are written ?name=value&name=value") from None
    for name, value in pairs:
        if name not in scheme.options:
            known = ", ".join(sorted(scheme.options)) or "none"
            hint = f"; over TLS it does, as {parts.scheme}s://" if name in _TLS and parts.scheme == "etcd" else ""
            raise ValueError(f"the {parts.scheme} store takes no option {name!r} (it takes: {known}){hint}")
        if name in options or not value:
            raise ValueError(f"the option {name!r} of a {parts.scheme} URL needs a value, and is given once")
        options[name] = value
    return options


def _servers(name: str, written: str, scheme: _Scheme, default_port: int) -> tuple[str, ...]:
    servers = []
    for server in written.split(","):
        try:
            servers.append(_server(server, default_port))
        except ValueError:
            raise ValueError(f"{server!r} is not the address of {scheme.server}; write {scheme.example}") from None
    if scheme.one_server and len(servers) > 1:
        raise ValueError(
            f"a {name} URL names one server, and this one names {len(servers)}; several belong to Sentinel: write "
            "redis+sentinel://HOST:PORT,HOST:PORT/NAME"
        )
    return tuple(servers)


def _server(written: str, default_port: int) -> str:
    """``host:port`` of one server; raises ``ValueError``."""
    host, colon, port = written.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = written, ""
    if ipv6 := _IPV6_HOST.fullmatch(host):
        ipaddress.IPv6Address(ipv6[1])
    elif not _HOST.fullmatch(unicodedata.normalize("NFKC", host)):
        raise ValueError("no host")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) <= PORT_MAX):
        raise ValueError("no port")
    # What follows a percent sign is the name of a network interface, which keeps its case.
    host, percent, interface = host.partition("%")
    return f"{host.lower()}{percent}{interface}:{int(port or default_port)}"


def _login(name: str, credentials: str, options: Mapping[str, str], prefix: str) -> Login | None:
    """Who we are, by the URL itself or by ``username`` and ``password_file``."""
    in_url, _, password_in_url = credentials.partition(":")
    username = options.get(f"{prefix}username", "")
    file = options.get(f"{prefix}password_file")
    if credentials and (username or file):
        raise ValueError(f"a {name} URL gives user and password before the '@' or as options, not both")
    if credentials:
        if not password_in_url:
            raise ValueError(f"a {name} URL with a user needs a password, too: USER:PASSWORD@, or options")
        return Login(username=unquote(in_url), password=unquote(password_in_url))
    if not username and not file:
        return None
    if file is None:
        raise ValueError(f"a {name} URL with {prefix}username needs {prefix}password_file as well")
    try:
        password = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{prefix}password_file {file} cannot be read ({_reason(error)})") from None
    if not password:
        raise ValueError(f"{prefix}password_file {file} is empty")
    return Login(username=username, password=password)


def _tls_files(options: Mapping[str, str]) -> TlsFiles:
    files: dict[str, Path | None] = {}
    for name in ("ca_file", "cert_file", "key_file"):
        path = files[name] = Path(options[name]) if name in options else None
        if path is not None:
            try:
                path.open("rb").close()
            except OSError as error:
                raise ValueError(f"{name} {path} cannot be read ({_reason(error)})") from None
    if (files["cert_file"] is None) != (files["key_file"] is None):
        raise ValueError("cert_file and key_file belong together: give both, or neither")
    return TlsFiles(
        ca_file=files["ca_file"],
        cert_file=files["cert_file"],
        key_file=files["key_file"],
        server_name=options.get("server_name"),
    )


def _count(options: Mapping[str, str], name: str) -> int | None:
    if name not in options:
        return None
    if not options[name].isdecimal():
        raise ValueError(f"{name} is a number of replicas, 0 or more, and it is {options[name]!r}")
    return int(options[name])


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or "unreadable") if isinstance(error, OSError) else "not UTF-8"
