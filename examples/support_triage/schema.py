"""What an answer to a customer's message looks like."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Triage(BaseModel):
    """The one thing the customer needs help with."""

    model_config = ConfigDict(extra="forbid")

    topic: Literal["password", "card", "currency", "loan", "transfer", "cash"]
