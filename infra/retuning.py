"""An alarm sets a new tuning in motion: a Prefect event, and the automation that starts `optimize-workload` on it."""

from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.client.orchestration import SyncPrefectClient
from prefect.events import emit_event
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from domain.workloads import Retune

WANTED = (Retune.AUTOMATIC, Retune.APPROVAL)
EVENT = "headrace.audit.alarm"
AUTOMATION = "headrace: an alarm of an audit starts optimize-workload"


def announce(*, run_id: str, bundle_hash: str, workload: str, folder: str, retune: Retune, alarms: list[str]) -> None:
    """Tell Prefect of an alarm; the same alarm has the same id, however often it is told."""
    emit_event(
        event=EVENT,
        resource={
            "prefect.resource.id": f"headrace.bundle.{bundle_hash}",
            "prefect.resource.name": f"{workload} bundle {bundle_hash[:12]}",
            "headrace.workload": workload,
            "headrace.retune": retune.value,
        },
        related=[{"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"}],
        payload={
            "workload": workload,
            "folder": folder,
            "bundle": bundle_hash,
            "alarms": alarms,
            # JSON in a text: what the automation's template gives is text too.
            "approval": "true" if retune is Retune.APPROVAL else "false",
        },
        id=uuid5(NAMESPACE_URL, f"{EVENT}/{run_id}"),
    )


def automation(optimize: UUID) -> AutomationCore:
    """What starts the deployment `optimize` for every alarm of a workload that is not to be left alone."""

    def said(template: str) -> dict[str, str]:
        return {"__prefect_kind": "jinja", "template": template}

    return AutomationCore(
        name=AUTOMATION,
        description="Made by `headrace deploy`; router.retune in workload.yaml says what a workload wants.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={EVENT},
            match=ResourceSpecification.model_validate(
                {"prefect.resource.id": "headrace.bundle.*", "headrace.retune": [r.value for r in WANTED]}
            ),
            for_each={"prefect.resource.id"},
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=optimize,
                job_variables=None,
                parameters={
                    "workload": said("{{ event.payload.folder }}"),
                    "approval": {"__prefect_kind": "json", "value": said("{{ event.payload.approval }}")},
                },
            )
        ],
    )


def ensure_automation(client: SyncPrefectClient) -> bool:
    """Create the automation unless just this one is there; True when it is new. One that was switched off stays off.

    Raises what the client raises.
    """
    wanted = automation(client.read_deployment_by_name("optimize-workload/default").id)
    enabled = True
    for found in client.read_automations_by_name(AUTOMATION):
        if _content(found) == _content(wanted):
            return False
        enabled = enabled and found.enabled
        client.delete_automation(found.id)
    client.create_automation(wanted.model_copy(update={"enabled": enabled}))
    return True


def _content(automation: AutomationCore) -> tuple[object, ...]:
    trigger = automation.trigger
    match = trigger.match if isinstance(trigger, EventTrigger) else None
    return automation.description, match, automation.actions
