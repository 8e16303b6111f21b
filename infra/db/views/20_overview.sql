-- One row a workload: its champion's certificate, the newest run that judged that bundle on test rows, the newest batch
-- that was routed and by which bundle, and whether an audit found the certificate void. Without a champion: the newest
-- run that came to a verdict. What a batch found void speaks of its own bundle only.
CREATE VIEW views.verdicts AS
SELECT
    w.workload,
    a.bundle_hash AS champion,
    coalesce(b.body -> 'certificate', judged.summary -> 'verdict') - 'grid' AS certificate,
    b.run_id AS made_by,
    judged.id AS judged_by,
    judged.summary -> 'test' AS test,
    judged.summary -> 'verdict' AS looked_at,
    judged.summary ? 'kept' AS kept,
    judged.summary -> 'gate' AS gate,
    batch.id AS batch,
    batch.summary AS batched,
    batch.bundle_hash AS batch_bundle,
    EXISTS (SELECT 1 FROM public.audits AS u WHERE u.bundle_hash = a.bundle_hash AND u.verdict = 'alarm') AS alarmed
FROM (SELECT DISTINCT r.workload FROM public.runs AS r) AS w
LEFT JOIN public.aliases AS a ON a.workload = w.workload AND a.alias = 'champion'
LEFT JOIN public.bundles AS b ON b.hash = a.bundle_hash
LEFT JOIN LATERAL (
    SELECT r.id, r.summary
    FROM public.runs AS r
    WHERE
        r.workload = w.workload AND r.kind = 'optimize' AND r.summary ? 'verdict'
        AND (a.bundle_hash IS NULL OR r.bundle_hash = a.bundle_hash)
    ORDER BY r.started_at DESC
    LIMIT 1
) AS judged ON TRUE
LEFT JOIN LATERAL (
    SELECT r.id, r.summary, r.bundle_hash
    FROM public.runs AS r
    WHERE r.workload = w.workload AND r.kind = 'route' AND r.summary ? 'answered'
        -- The quarantined rows of a batch, asked again, are no batch of the workload (infra/requeueing.py).
        AND NOT EXISTS (
            SELECT 1 FROM public.dataset_versions AS v
            WHERE v.hash = r.dataset_version AND v.uri LIKE 'quarantine of %'
        )
    ORDER BY r.started_at DESC
    LIMIT 1
) AS batch ON TRUE;

-- One row a run, tier and split of its judged rows: how many answers, and the sums of their price at list, USD, from
-- which a mean and its interval follow.
CREATE VIEW views.tier_costs AS
SELECT
    a.run_id,
    a.tier,
    d.split,
    count(*) AS n,
    sum(a.usd) AS usd,
    sum(a.usd * a.usd) AS usd_squared
FROM public.answers AS a
INNER JOIN public.runs AS r ON r.id = a.run_id
INNER JOIN public.records AS d ON d.dataset_version = r.dataset_version AND d.key = a.record_key
GROUP BY a.run_id, a.tier, d.split;

-- One row a run: how many of its rows are in quarantine.
CREATE VIEW views.quarantine_counts AS
SELECT
    r.id AS run_id,
    (SELECT count(*) FROM public.quarantined AS q WHERE q.run_id = r.id) AS quarantined
FROM public.runs AS r;

-- One row a run: what it was made of, so that two runs can be held against each other. Addresses of servers are left
-- out.
CREATE VIEW views.makings AS
SELECT
    r.id AS run_id,
    r.workload,
    r.kind,
    r.state,
    r.started_at,
    r.dataset_version,
    d.records,
    r.bundle_hash,
    r.summary ->> 'code' AS code,
    r.spec ->> 'instructions' AS instructions,
    r.spec ->> 'metric' AS metric,
    r.spec -> 'target' AS target,
    r.spec -> 'optimizer' AS optimizer,
    r.spec #>> '{tiers,cheap,model}' AS cheap_model,
    r.spec #>> '{tiers,cheap,revision}' AS cheap_revision,
    r.spec #>> '{tiers,strong,model}' AS strong_model,
    r.spec #>> '{tiers,strong,revision}' AS strong_revision,
    r.spec #> '{tiers,cheap,usd_per_million}' AS cheap_prices,
    r.spec #> '{tiers,strong,usd_per_million}' AS strong_prices,
    r.summary #>> '{served,cheap,engine_version}' AS cheap_engine,
    r.summary #>> '{served,strong,engine_version}' AS strong_engine,
    b.body #> '{cheap,prompt}' AS cheap_prompt,
    b.body #> '{strong,prompt}' AS strong_prompt,
    b.body -> 'json_schema' AS json_schema,
    b.body #>> '{routing,signal}' AS signal,
    (b.body ->> 'threshold')::double precision AS threshold
FROM public.runs AS r
LEFT JOIN public.dataset_versions AS d ON d.hash = r.dataset_version
LEFT JOIN public.bundles AS b ON b.hash = r.bundle_hash;
