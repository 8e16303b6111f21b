"""The tree of errors: every class says whether another try can help and what to do."""

from dataclasses import dataclass
from typing import ClassVar


class HeadraceError(Exception):
    """The root of everything Headrace raises on purpose."""

    retryable: ClassVar[bool] = False
    hint: ClassVar[str] = "See the log of the run."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = hint or self.hint

    def __str__(self) -> str:
        return f"{self.message} Fix: {self.fix}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where bad input stands: file, 1-based line and column, field; each may be unknown."""

    file: str
    line: int | None = None
    column: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        numbers = "".join(f":{n}" for n in (self.line, self.column) if n is not None)
        return f"{self.file}{numbers}" + (f": {self.field}" if self.field else "")


class InputError(HeadraceError):
    """Something the user wrote cannot be used."""

    hint = "Correct the file and run again."

    def __init__(self, place: Place, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{place}: {message}", hint=hint)
        self.place = place


class WorkloadError(InputError):
    """The workload file, its schema or its metric is wrong."""


class DatasetError(InputError):
    """A data file as a whole cannot be read."""


class DatasetUnreachable(DatasetError):
    """The server that holds a dataset does not answer, or fails."""

    retryable = True
    hint = "Try again later, or check the address."


class NotPermitted(InputError):
    """A dataset that is read because a message or a clock says so lies where nobody has allowed it."""

    hint = "`permitted` in triggers.yaml says which schemes, hosts and folders may be read."


class ModelError(HeadraceError):
    """A model server did not give a usable answer."""


class ModelUnavailable(ModelError):
    """The server cannot be reached, is overloaded or ran past the deadline."""

    retryable = True
    hint = "Check the server with `headrace status`; the run resumes from the ledger."


class RequestRefused(ModelError):
    """The server refused this request for what it says (HTTP 4xx)."""

    hint = "Check model name, prompt length and schema against the server."


class PromptTooLong(RequestRefused):
    """The model's context has no room for this prompt and its answer; it was not sent."""

    hint = "Shorten the row, take fewer demos, or serve the model with a longer context."


class WorkerKilled(RequestRefused):
    """Every worker that this request was sent to died of it."""

    hint = "Look at the row and at the worker's log; the row is in quarantine, the others went on."


class RequestFailed(ModelError):
    """The server fails on this request again and again, while it answers others."""

    hint = "Look at the worker's log; the row is in quarantine, the others went on."


class RequestTimedOut(ModelError):
    """This request was not answered in its time, while others were."""

    hint = "Raise HEADRACE_REQUEST_DEADLINE_S or lower max_tokens; the row is in quarantine, the others went on."


class AnswerGarbled(ModelError):
    """The server answers this request with something that is no chat completion, however often it is asked."""

    retryable = True
    hint = "Look at the answer in the server's log; the row is in quarantine, the others went on."


class CompileError(HeadraceError):
    """The optimiser could not work on this workload."""

    hint = "Check that the train split has rows and the tier's server answers."


class StaleBundle(HeadraceError):
    """A bundle was made for something that has changed since."""

    hint = "Make a new bundle with `headrace run`."


class PromotionRefused(HeadraceError):
    """The gate has reasons against a bundle, or there is no champion to go back to."""

    hint = 'Mend what it says, or promote with `--force --reason "…"`; the audit table keeps the reason.'


class TooManyQuarantined(HeadraceError):
    """More of a run's rows are in quarantine than the workload allows; what was answered is stored."""

    hint = "`headrace show RUN --quarantined` says why; mend the rows or the prompt, or raise max_quarantined."


class StoreError(HeadraceError):
    """Postgres refused or could not be reached."""

    retryable = True
    hint = "Check the database with `headrace doctor`."


class SchemaMismatch(StoreError):
    """The ledger's schema, or that of the dashboard's views, is not the one that this code works with."""

    retryable = False
    hint = "Bring it there with `headrace migrate` (`headrace up` does it too)."
    of_newer: ClassVar[str] = (
        "Use the newer release, or restore the backup from before the upgrade; see docs/operations.md, Upgrade."
    )


class RunUnderWay(HeadraceError):
    """Another process carries out the same work and is alive."""

    def __init__(self, run_id: str, holder: str) -> None:
        fix = f"Wait for it, or stop it with `headrace cancel {run_id[:8]}`."
        super().__init__(f"run {run_id} does the same and is under way in {holder}.", hint=fix)
        self.run_id = run_id


class LeaseLost(HeadraceError):
    """Another process has taken this one's work over; nothing of this one is written any more."""

    hint = "Nothing is to be done: the other process goes on from the ledger."


class RunCancelled(HeadraceError):
    """The run was asked to stop; finished rows are kept."""

    hint = "Go on with `headrace resume RUN`."


class NothingChanged(HeadraceError):
    """Neither the rows nor the workload have changed since a run that is complete; this one has nothing to do."""

    hint = "Nothing is to be done; start it without `only_changed` to have it done again."

    def __init__(self, run_id: str) -> None:
        super().__init__(f"nothing has changed since run {run_id[:8]}.")


class KeyReused(HeadraceError):
    """An idempotency key that has started a run comes again with other parameters."""

    hint = "Give another key; the run that it has started goes on."


class BudgetReached(HeadraceError):
    """The next call could cross the run's budget; finished rows are kept."""

    hint = "Go on with `headrace resume RUN --max-usd X` or `--max-tokens N`."


class TraceStoreError(HeadraceError):
    """MLflow or Phoenix could not be reached or refused; the ledger keeps what they miss."""

    retryable = True
    hint = "Check the server with `headrace status`; scores and spans are sent again from the ledger."


class NotFound(HeadraceError):
    """A name that nobody knows."""

    hint = "List what exists with `headrace runs`."
