-- One row a run: what it was, how it went, and where else it can be seen. A run that says it is running while no process
-- holds a lease for it is lost, as in `headrace runs`.
CREATE VIEW views.runs AS
SELECT
    r.id AS run_id,
    r.kind,
    r.workload,
    CASE
        WHEN
            r.state = 'running'
            AND NOT EXISTS (SELECT 1 FROM public.leases AS l WHERE l.run_id = r.id AND l.expires_at > clock_timestamp())
            THEN 'lost'
        ELSE r.state
    END AS state,
    r.dataset_version,
    r.bundle_hash,
    r.started_at,
    r.ended_at,
    r.started_by,
    extract(EPOCH FROM coalesce(r.ended_at, now()) - r.started_at)::double precision AS seconds,
    r.links,
    r.summary
FROM public.runs AS r;
