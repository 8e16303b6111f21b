"""A run's hard budget: what may still be spent, with room held for every call that is under way."""

from dataclasses import dataclass

from domain.errors import BudgetReached


@dataclass(slots=True)
class Budget:
    """Limits in USD and tokens (None: no limit), what the run has spent, and what calls under way may yet cost."""

    max_usd: float | None = None
    max_tokens: int | None = None
    usd: float = 0.0
    tokens: int = 0
    held_usd: float = 0.0
    held_tokens: int = 0

    def fits(self, usd: float, tokens: int) -> bool:
        """Whether a call that costs this much at most leaves the run within its limits."""
        if self.max_usd is not None and self.usd + self.held_usd + usd > self.max_usd:
            return False
        return self.max_tokens is None or self.tokens + self.held_tokens + tokens <= self.max_tokens

    def hold(self, usd: float, tokens: int) -> None:
        """Keep room for a call that is sent now."""
        self.held_usd += usd
        self.held_tokens += tokens

    def settle(self, held_usd: float, held_tokens: int, *, usd: float, tokens: int) -> None:
        """Put what a call did cost in the place of what was held for it."""
        self.held_usd -= held_usd
        self.held_tokens -= held_tokens
        self.usd += usd
        self.tokens += tokens

    def reached(self) -> BudgetReached:
        """The error that pauses the run."""
        limits = [
            f"{self.max_usd:g} USD" if self.max_usd is not None else "",
            f"{self.max_tokens:,} tokens" if self.max_tokens is not None else "",
        ]
        return BudgetReached(
            f"the next call could cross the budget of {' and '.join(filter(None, limits))}: "
            f"{self.usd:.6g} USD and {self.tokens:,} tokens are spent"
        )
