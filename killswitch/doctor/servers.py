"""What the settings and versions of store servers mean for a kill switch. A setting that is not told, or not known
here, leads to no finding."""

from __future__ import annotations

import re
from collections.abc import Mapping

from killswitch.doctor.measurements import StoreSeen
from killswitch.doctor.verdict import Finding, Severity

ETCD = frozenset({"etcd", "etcds", "embedded"})
REDIS = frozenset({"redis", "rediss", "redis+sentinel", "rediss+sentinel"})
ZOOKEEPER = frozenset({"zookeeper", "zookeeper+tls"})

FORGETFUL_ETCD = re.compile(r"^3\.5\.[0-2](?!\d)")
"""github.com/etcd-io/etcd/issues/13766: killed under load, these can forget commits that they had confirmed."""

UNKNOWN = "unknown"
"""How a store begins the value of a setting that it could not find out."""

ETCD_DEFAULT_QUOTA_BYTES = 2 * 1024**3
NEAR_QUOTA = 0.8
MIB = 1024**2


def server_findings(seen: StoreSeen) -> list[Finding]:
    """Judge what a server tells of itself."""
    scheme = seen.address.partition("://")[0]
    told = {
        re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): value.strip()
        for name, value in seen.settings.items()
        if not value.startswith(UNKNOWN)
    }
    if scheme in ETCD:
        return _etcd(seen.version, told, alone_on_purpose=scheme == "embedded")
    if scheme in REDIS:
        return _redis(told)
    if scheme in ZOOKEEPER:
        return _zookeeper(told)
    return []


def _etcd(version: str, told: Mapping[str, str], *, alone_on_purpose: bool) -> list[Finding]:
    found = []
    if FORGETFUL_ETCD.match(version):
        what = f"this is etcd {version}, which can forget commits that it had confirmed when it is killed under load"
        found.append(Finding(Severity.WARNING, "server", what, "a freeze could be lost", "use 3.4, or 3.5.3 and newer"))
    alarms = _first(told, "alarms", "alarm")
    if alarms and alarms.lower() not in {"none", "0", "[]", "-"}:
        what = f"etcd has raised an alarm ({alarms})"
        why = "with NOSPACE it takes no writes, so no freeze; with CORRUPT its members disagree"
        found.append(
            Finding(Severity.FAULT, "server", what, why, "see `etcdctl alarm list`, mend it, then `alarm disarm`")
        )
    members = _number(_first(told, "voting_members", "member_count", "members"))
    if members == 1:
        severity = Severity.NOTE if alone_on_purpose else Severity.WARNING
        why = "while it is down nobody can trade or freeze, and with its disk all is lost"
        found.append(Finding(severity, "server", "etcd has one member only", why, "run three for production"))
    if told.get("login_required") == "no":
        what = "etcd asks for no password"
        found.append(Finding(Severity.NOTE, "server", what, "whoever reaches it may release what others froze"))
    size = _number(_first(told, "database_bytes", "db_size_bytes", "db_size"))
    quota = _number(_first(told, "quota_bytes", "quota_backend_bytes", "db_size_quota"))
    limit = quota or ETCD_DEFAULT_QUOTA_BYTES
    if size is not None and size > NEAR_QUOTA * limit:
        named = "its quota" if quota else "the default quota"
        what = f"etcd's database has {size / MIB:.0f} MiB, near {named} of {limit / MIB:.0f} MiB"
        why = "at the quota it takes no writes, so no freeze"
        found.append(Finding(Severity.WARNING, "server", what, why, "compact and defragment it, or raise the quota"))
    return found


def _redis(told: Mapping[str, str]) -> list[Finding]:
    found = []
    policy = told.get("maxmemory_policy", "")
    if policy and policy != "noeviction":
        why = "a full Redis would throw the flag or its history away"
        what = f"Redis has maxmemory-policy {policy}"
        found.append(Finding(Severity.FAULT, "server", what, why, "set maxmemory-policy noeviction"))
    append_only, synced = told.get("appendonly", ""), told.get("appendfsync", "")
    if append_only == "no":
        why = "a restart forgets freezes that it had confirmed"
        do = "set appendonly yes and appendfsync always"
        found.append(Finding(Severity.FAULT, "server", "Redis has appendonly no", why, do))
    elif synced and synced != "always":
        why = "a machine that crashes forgets freezes that it had confirmed"
        found.append(
            Finding(Severity.WARNING, "server", f"Redis has appendfsync {synced}", why, "set appendfsync always")
        )
    return found


def _zookeeper(told: Mapping[str, str]) -> list[Finding]:
    named = _first(told, "read_only", "readonly", "read_only_mode", "isro")
    if named.lower() in {"true", "yes", "1", "ro", "read_only"}:
        what = "the ZooKeeper server is in read-only mode"
        why = "it has lost its quorum: it takes no freeze, and what it shows may be old"
        return [Finding(Severity.FAULT, "server", what, why, "bring a majority of the servers back")]
    return []


def _first(told: Mapping[str, str], *names: str) -> str:
    return next((told[name] for name in names if name in told), "")


def _number(text: str) -> int | None:
    """The whole number that a text is, ``None`` where it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
