"""One part of a file of settings: every name must be known, every number finite, nothing changes afterwards."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator
from pydantic_core import PydanticCustomError

RULE_FAULTS: Final = "risk_rule_faults"
"""Type of the error by which a section tells faults that are whole sentences already."""

SymbolName = Annotated[StrictStr, Field(min_length=1, max_length=128)]


class Section(BaseModel):
    """A part of the rules: every name must be known, every number finite, nothing can be changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = self.faults()
        if faults:
            raise PydanticCustomError(RULE_FAULTS, "{text}", {"faults": faults, "text": "; ".join(faults)})
        return self

    def faults(self) -> list[str]:
        """Return one sentence for each thing that is wrong between settings that are sound one by one."""
        return []
