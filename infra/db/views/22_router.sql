-- One row a run that came to a verdict on a threshold: under which terms it tested, and how its bundle reads a row.
CREATE VIEW views.router_runs AS
SELECT
    r.id AS run_id,
    r.workload,
    r.started_at,
    r.bundle_hash,
    r.summary ? 'kept' AS kept,
    r.summary -> 'verdict' AS verdict,
    r.summary -> 'signals' AS signals,
    r.spec -> 'target' AS target,
    coalesce(r.spec #> '{router,signals}', '["margin"]') AS declared,
    r.spec ->> 'metric' AS metric,
    b.body -> 'routing' AS routing,
    b.body ->> 'decisive' AS decisive,
    b.body #> '{cheap,prompt}' AS prompt,
    (b.body ->> 'threshold')::double precision AS threshold,
    EXISTS (
        SELECT 1 FROM public.aliases AS a
        WHERE a.workload = r.workload AND a.alias = 'champion' AND a.bundle_hash = r.bundle_hash
    ) AS champion
FROM public.runs AS r
INNER JOIN public.bundles AS b ON b.hash = r.bundle_hash
WHERE r.kind = 'optimize' AND r.summary ? 'verdict';

-- One row a calibration or test row of a run's dataset version: their keys, from the index and in its order.
CREATE VIEW views.router_keys AS
SELECT
    r.id AS run_id,
    d.key,
    d.split
FROM public.runs AS r
INNER JOIN public.records AS d ON d.dataset_version = r.dataset_version AND d.split IN ('calibration', 'test');

-- One row a calibration or test row of such a run that both tiers answered: its quality, price and tokens by tier, and
-- what the cheap answer's confidence can be read from. Inputs are for their length only, which some routers look at.
CREATE VIEW views.router_rows AS
SELECT
    r.id AS run_id,
    d.key,
    d.split,
    d.inputs,
    c.output ->> (b.body ->> 'decisive') AS label,
    c.output IS NOT NULL AS cheap_valid,
    s.output IS NOT NULL AS strong_valid,
    c.confidence,
    c.signals,
    c.signal_usd,
    c.usd AS cheap_usd,
    s.usd AS strong_usd,
    c.tokens AS cheap_tokens,
    s.tokens AS strong_tokens,
    cq.value AS cheap_quality,
    sq.value AS strong_quality
FROM public.runs AS r
INNER JOIN public.bundles AS b ON b.hash = r.bundle_hash
INNER JOIN public.records AS d ON d.dataset_version = r.dataset_version AND d.split IN ('calibration', 'test')
INNER JOIN public.answers AS c ON c.run_id = r.id AND c.tier = 'cheap' AND c.record_key = d.key
INNER JOIN public.answers AS s ON s.run_id = r.id AND s.tier = 'strong' AND s.record_key = d.key
INNER JOIN public.scores AS cq
    ON cq.run_id = r.id AND cq.record_key = d.key AND cq.tier = 'cheap' AND cq.metric = r.spec ->> 'metric'
INNER JOIN public.scores AS sq
    ON sq.run_id = r.id AND sq.record_key = d.key AND sq.tier = 'strong' AND sq.metric = r.spec ->> 'metric';

-- One row a run: how often, with different evidence, any of its calibration rows has been used for a certificate. The
-- next tuning on them is one more.
CREATE VIEW views.router_uses AS
SELECT
    r.id AS run_id,
    coalesce(
        (
            SELECT max(u.uses)
            FROM (
                SELECT count(DISTINCT t.evidence) AS uses
                FROM public.tunings AS t
                INNER JOIN public.records AS used
                    ON used.dataset_version = t.dataset_version AND used.split = 'calibration'
                INNER JOIN public.records AS mine
                    ON
                        mine.key = used.key AND mine.dataset_version = r.dataset_version
                        AND mine.split = 'calibration'
                WHERE t.workload = r.workload
                GROUP BY mine.key
            ) AS u
        ), 0
    ) AS uses
FROM public.runs AS r;
