"""Settings from the environment: ``KILLSWITCH_TIMING__PERMIT_TTL_MS`` for ``timing.permit_ttl_ms``.

A variable that nobody reads is a setting that does not hold, so one that is no setting is a fault, by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import BaseModel

from killswitch.settings.section import fields_along, leaves, section_at, section_in
from killswitch.settings.settings_file import Fault, Where, meant

ENV_PREFIX: Final = "KILLSWITCH_"
_BETWEEN: Final = "__"

OWN_VARIABLES: Final[Mapping[str, str]] = {
    "KILLSWITCH_CONFIG": "the settings file, as --config",
    "KILLSWITCH_ACTOR": "who acts, for the history, instead of the user of the machine",
    "KILLSWITCH_REQUIRE_DOCKER": "tests: 1 makes those that need Docker fail where it does not answer",
    "KILLSWITCH_IMAGE_LOCK": "tests/images/build.sh: it holds its lock already",
    "KILLSWITCH_TEST_GRACE_S": "tests: seconds that one that waits is given beyond its own limit",
    "KILLSWITCH_TEST_LAWS": "tests: how the property tests draw: the same each time, or at random and long",
    "KILLSWITCH_TEST_BARS": "tests: a file of one-minute bars",
    "KILLSWITCH_TEST_BASE_IMAGE": "tests: the image that those of the servers and of the project stand on",
    "KILLSWITCH_TEST_KILLSWITCH_IMAGE": "tests: an image of the project that is there already",
    "KILLSWITCH_TEST_ETCD_IMAGE": "tests: the image of etcd",
    "KILLSWITCH_TEST_REDIS_IMAGE": "tests: the image of Redis",
    "KILLSWITCH_TEST_ZOOKEEPER_IMAGE": "tests: the image of ZooKeeper",
    "KILLSWITCH_TEST_ETCD_URL": "tests: an etcd that runs already",
    "KILLSWITCH_TEST_REDIS_URL": "tests: a Redis that runs already",
    "KILLSWITCH_TEST_ZOOKEEPER_URL": "tests: a ZooKeeper that runs already",
}
"""Variables that are no settings, and what each is for."""

_OF_TESTS: Final = "KILLSWITCH_TEST_"


@dataclass(frozen=True, slots=True)
class EnvironmentValues:
    """What the environment sets.

    Attributes:
        values: by section, as texts.
        variables: the variable that sets each setting.
        faults: one for each variable that is no setting, or no JSON where it sets a whole section; its place begins
            with the setting that may have been meant.
    """

    values: Mapping[str, Any]
    variables: Mapping[Where, str]
    faults: tuple[Fault, ...]


def read_environment(model: type[BaseModel], environment: Mapping[str, str]) -> EnvironmentValues:
    """Read the variables that set something of a model; an empty one counts as unset. Never raises."""
    values: dict[str, Any] = {}
    variables: dict[Where, str] = {}
    faults: list[Fault] = []
    of_sections: dict[str, str] = {}
    for name, text in environment.items():
        if not text or not name.upper().startswith(ENV_PREFIX) or _is_own(name.upper(), environment):
            continue
        where = tuple(name[len(ENV_PREFIX) :].lower().split(_BETWEEN))
        if len(list(fields_along(model, where))) < len(where):
            faults.append(_unknown(name, where, model))
        elif section_at(model, where[:1]) is None:
            values[where[0]] = text
            variables[where] = name
        elif section_at(model, where) is not None and not _is_json(text):
            faults.append(
                Fault(where, f"{name}: {'.'.join(where)}: is no JSON; write JSON, or one variable for each setting")
            )
        else:
            of_sections[name.lower()] = text
            variables[where] = name
    if of_sections:
        values |= _sections(model, of_sections)
        for where, _ in leaves(values):
            outer = next((where[:size] for size in range(len(where), 0, -1) if where[:size] in variables), None)
            if outer is not None:
                variables[where] = variables[outer]
    return EnvironmentValues(values, variables, tuple(faults))


def _sections(model: type[BaseModel], variables: Mapping[str, str]) -> dict[str, Any]:
    # It takes longer to load than all the rest, and what stops trading should not wait for what it does not need.
    from pydantic_settings import BaseSettings, EnvSettingsSource  # noqa: PLC0415 - as said

    source = EnvSettingsSource(
        cast("type[BaseSettings]", model), case_sensitive=False, env_prefix=ENV_PREFIX, env_nested_delimiter=_BETWEEN
    )
    source.env_vars = variables
    return source()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_own(name: str, environment: Mapping[str, str]) -> bool:
    """Tell whether a variable is no setting and meant to be there.

    Kubernetes tells every pod of each service, those named killswitch and killswitch-etcd among them, by variables such
    as ``KILLSWITCH_ETCD_SERVICE_HOST`` and ``KILLSWITCH_ETCD_PORT_2379_TCP_ADDR``.
    """
    if name in OWN_VARIABLES or name.startswith(_OF_TESTS):
        return True
    services = (other.removesuffix("SERVICE_HOST") for other in environment if other.endswith("_SERVICE_HOST"))
    return any(name.startswith((f"{service}SERVICE_", f"{service}PORT")) for service in services)


def _unknown(name: str, where: tuple[str, ...], model: type[BaseModel]) -> Fault:
    known = {_variable(place): place for place in _places(model)}
    hint = meant(name.upper(), [*known, *OWN_VARIABLES])
    suggestion = f"; did you mean {hint}?" if hint else ""
    return Fault(known.get(hint or "", where), f"{name}: {'.'.join(where)}: there is no such setting{suggestion}")


def _places(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        inner = section_in(field.annotation)
        if inner is not None:
            yield from _places(inner, (*above, name))


def _variable(where: tuple[str, ...]) -> str:
    return f"{ENV_PREFIX}{_BETWEEN.join(where).upper()}"
