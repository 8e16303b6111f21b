-- One row a compiled prompt: what the search came to, the run that it was made in (NULL: from elsewhere), and the aliases
-- of the bundles that hold it.
CREATE VIEW views.prompt_timeline AS
SELECT
    p.compile_key,
    p.workload,
    p.tier,
    p.hash,
    p.created_at,
    p.body,
    p.report - 'prior' AS report,
    m.run_id,
    (
        SELECT string_agg(DISTINCT a.alias, ', ')
        FROM public.bundles AS b
        INNER JOIN public.aliases AS a ON a.bundle_hash = b.hash
        WHERE b.workload = p.workload AND b.body -> p.tier -> 'prompt' = p.body
    ) AS aliases
FROM public.prompt_versions AS p
LEFT JOIN LATERAL (
    SELECT r.id AS run_id
    FROM public.runs AS r
    WHERE
        r.workload = p.workload AND r.kind = 'optimize' AND r.started_at <= p.created_at
        AND coalesce(r.ended_at, now()) >= p.created_at
    ORDER BY r.started_at DESC
    LIMIT 1
) AS m ON TRUE;

-- One row a tier whose prompt was searched in a run: the calls of the search that were made and what they cost, those
-- that the ledger answered and what they would have cost; USD at list price.
CREATE VIEW views.compile_costs AS
SELECT
    a.run_id,
    a.tier,
    count(*) FILTER (WHERE NOT a.cached) AS calls,
    count(*) FILTER (WHERE a.cached) AS spared,
    coalesce(sum(a.usd) FILTER (WHERE NOT a.cached), 0)::double precision AS usd,
    coalesce(sum(a.usd) FILTER (WHERE a.cached), 0)::double precision AS spared_usd
FROM public.attempts AS a
WHERE a.stage = 'compile'
GROUP BY a.run_id, a.tier;

-- One row a bundle whose own run settled its test rows: how many, and the sums from which the mean price of a row and its
-- interval follow; USD at list price, what was spent in vain included.
CREATE VIEW views.bundle_costs AS
SELECT
    b.hash,
    c.n,
    c.usd,
    c.usd_squared
FROM public.bundles AS b
INNER JOIN public.runs AS r ON r.id = b.run_id AND r.bundle_hash = b.hash
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE d.split = 'test') AS n,
        sum(e.usd) FILTER (WHERE d.split = 'test') AS usd,
        sum(e.usd * e.usd) FILTER (WHERE d.split = 'test') AS usd_squared
    FROM views.row_ends AS e
    INNER JOIN public.records AS d ON d.dataset_version = r.dataset_version AND d.key = e.record_key
    WHERE e.run_id = r.id
) AS c;

-- One row an act on a workload's champion: who did what with which bundle, when, why, and what the gate said.
CREATE VIEW views.promotion_log AS
SELECT
    a.id,
    a.at,
    a.who,
    a.act,
    a.workload,
    a.from_hash,
    a.to_hash,
    a.reason,
    a.gate,
    a.run_id
FROM public.promotion_audit AS a;
