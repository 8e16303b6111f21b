-- One row a call that was made, or that the ledger spared (`cached`): USD and tokens are what it cost, or would have.
-- What servers said of an error is without names and queries in addresses. Nothing here is computed over other rows, so
-- that conditions on `at` and `run_id` reach their indexes.
CREATE VIEW views.calls AS
SELECT
    a.run_id,
    a.stage,
    a.tier,
    views.place_shown(a.worker) AS worker,
    a.number,
    a.cached,
    a.prompt_tokens,
    a.completion_tokens,
    a.cached_tokens,
    a.seconds,
    a.usd,
    a.outcome,
    left(views.words_shown(a.detail), 300) AS detail,
    a.at
FROM public.attempts AS a;

-- One row a tier of a run: which model it was, and what its run was about.
CREATE VIEW views.run_tiers AS
SELECT
    r.id AS run_id,
    r.workload,
    r.kind,
    t.key AS tier,
    t.value ->> 'model' AS model
FROM public.runs AS r
CROSS JOIN LATERAL jsonb_each(CASE WHEN jsonb_typeof(r.spec -> 'tiers') = 'object' THEN r.spec -> 'tiers' END) AS t;

-- One row a run: when it began and ended. Nothing else, so that what joins it can be worked on in parallel.
CREATE VIEW views.run_times AS
SELECT
    r.id AS run_id,
    r.workload,
    r.started_at,
    r.ended_at
FROM public.runs AS r;

-- One row a run that says it is running: its rows and what became of them so far, how far its newest stage is, and
-- whether a process holds its lease. The three counts are read from indexes, of runs under way only.
CREATE VIEW views.queue AS
SELECT
    r.id AS run_id,
    r.workload,
    r.kind,
    r.started_at,
    r.links ->> 'prefect' AS prefect,
    (SELECT count(*) FROM public.run_rows AS w WHERE w.run_id = r.id) AS records,
    (SELECT count(*) FROM public.outcomes AS o WHERE o.run_id = r.id) AS outcomes,
    (SELECT count(*) FROM public.quarantined AS q WHERE q.run_id = r.id) AS quarantined,
    EXISTS (
        SELECT 1 FROM public.leases AS l WHERE l.run_id = r.id AND l.expires_at > clock_timestamp()
    ) AS held,
    p.stage,
    p.done,
    p.total,
    p.unit,
    p.updated_at
FROM public.runs AS r
LEFT JOIN LATERAL (
    SELECT
        s.stage,
        s.done,
        s.total,
        s.unit,
        s.updated_at
    FROM public.progress AS s
    WHERE s.run_id = r.id
    ORDER BY s.updated_at DESC
    LIMIT 1
) AS p ON TRUE
WHERE r.state = 'running';

-- One row a lease that somebody holds: the piece of work, the run (or `dispatch`), the process, and until when.
CREATE VIEW views.leases AS
SELECT
    l.work,
    l.run_id,
    l.token,
    l.holder,
    l.expires_at,
    r.workload,
    r.kind
FROM public.leases AS l
LEFT JOIN public.runs AS r ON r.id = l.run_id
WHERE l.expires_at > clock_timestamp();
