"""The link between order routers and the agent of their node. Standard library only."""

from killswitch.link.messages import BadLine, CancelResult, Exposure, Holding, Stop, StopCause
from killswitch.link.router_link import RouterLink

__all__ = ["BadLine", "CancelResult", "Exposure", "Holding", "RouterLink", "Stop", "StopCause"]
