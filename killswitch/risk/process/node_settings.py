"""Settings of what the agent asks of the reports of its routers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from killswitch.risk.node_rule import NodeLevel
from killswitch.settings.section import Section

_Ms = Annotated[int, Field(strict=True, gt=0, le=86_400_000)]


class NodeInputsSettings(Section):
    """What makes the reports of a node's routers unfit to judge by, and what that does."""

    router_silent_after_ms: _Ms | None = Field(
        None,
        description="Milliseconds since a connected router has reported; absent: not asked, for routers that report "
        "when something changes and are quiet otherwise.",
    )
    silent: NodeLevel = Field(
        "freeze", description="warning, pause, reduce_only or freeze. What a router does that has fallen silent."
    )
    mark_frozen_after_ms: _Ms | None = Field(
        None, description="Milliseconds that the mark of a symbol that is held has not moved; absent: not asked."
    )
    frozen: NodeLevel = Field(
        "pause", description="warning, pause, reduce_only or freeze. What a mark does that does not move."
    )
