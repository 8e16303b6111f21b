"""What an answer is in the benchmarks: one closed field. Headrace and its rivals are given this very model."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Subject(BaseModel):
    """What a customer's message is about."""

    model_config = ConfigDict(extra="forbid")

    label: Literal["card", "loan", "cash", "transfer"]
