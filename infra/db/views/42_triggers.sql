-- One row a message that was believed: who sent it, what it was called, which datasets it means.
CREATE VIEW views.deliveries AS
SELECT
    d.key,
    d.source,
    d.delivery_id,
    d.event,
    d.datasets,
    d.received_at
FROM public.deliveries AS d;

-- One row a dataset that a delivery says has changed, and what became of it. Times in seconds; words of errors without
-- what stands before @ in an address, and without what follows its question mark.
CREATE VIEW views.changes AS
SELECT
    c.number,
    c.delivery_key,
    c.dataset,
    c.state,
    c.tries,
    c.due_at,
    c.settled_at,
    c.dataset_version,
    c.run_id,
    r.workload,
    r.state AS run_state,
    r.links ->> 'prefect' AS prefect,
    d.source,
    d.received_at,
    EXISTS (
        SELECT 1 FROM public.changes AS before
        WHERE before.delivery_key = c.delivery_key AND before.dataset = c.dataset AND before.number < c.number
    ) AS replayed,
    views.words_shown(c.detail) AS detail
FROM public.changes AS c
INNER JOIN public.deliveries AS d ON d.key = c.delivery_key
LEFT JOIN public.runs AS r ON r.id = c.run_id;

-- One row a dataset whose files are looked at: when the last time, and whether a look has ever come to its end.
CREATE VIEW views.polls AS
SELECT
    p.dataset,
    p.looked_at,
    p.seen <> '' AS seen
FROM public.polls AS p;

-- One row a start: the flow, what it was asked to do, and the run, which Prefect may not have begun yet.
CREATE VIEW views.starts AS
SELECT
    s.key,
    s.flow,
    s.parameters ->> 'workload' AS workload,
    s.parameters ->> 'version' AS dataset_version,
    s.parameters ->> 'scope' AS scope,
    (s.parameters ->> 'max_usd')::double precision AS max_usd,
    s.run_id,
    s.created_at,
    r.state AS run_state,
    r.links ->> 'prefect' AS prefect
FROM public.starts AS s
LEFT JOIN public.runs AS r ON r.id = s.run_id;

-- One row a message to an endpoint of ours, without its payload; `tries` counts those that have begun.
CREATE VIEW views.notices AS
SELECT
    n.endpoint,
    n.key,
    n.event,
    n.state,
    n.tries,
    n.created_at,
    n.due_at,
    n.settled_at,
    views.words_shown(n.error) AS error
FROM public.notices AS n;
