-- What a run was to measure. One row a run: its metric, its decisive field, and whether and by whom answers are judged.
CREATE VIEW views.run_measures AS
SELECT
    r.id AS run_id,
    r.spec ->> 'metric' AS metric,
    r.spec ->> 'decisive' AS decisive,
    coalesce((r.spec #>> '{judge,enabled}')::boolean, FALSE) AS judged,
    r.spec #>> '{judge,tier}' AS judging_tier,
    r.spec #> '{dataset,gold}' AS gold,
    r.kind = 'route' AND coalesce((r.summary ->> 'void') NOT IN ('', '[]', 'false', 'null'), FALSE) AS void
FROM public.runs AS r;

-- What answers took that their run's bundle asks for: a cheap one only where it keeps some, and of the signals that an
-- optimisation looks at, its own. One row such an answer, USD at list price. Rows that a bundle sends straight to the
-- strong tier for their length are not told apart in an optimisation.
CREATE VIEW views.answer_prices AS
SELECT
    a.run_id,
    a.record_key,
    a.tier,
    a.usd + CASE WHEN r.kind = 'optimize' AND b.hash IS NOT NULL THEN
        coalesce((a.signal_usd ->> coalesce(b.body #>> '{routing,signal}', 'margin'))::double precision, 0)
        - coalesce((SELECT sum(e.value::double precision) FROM jsonb_each_text(a.signal_usd) AS e), 0)
    ELSE 0 END AS usd
FROM public.answers AS a
INNER JOIN public.runs AS r ON r.id = a.run_id
INNER JOIN views.run_measures AS m ON m.run_id = r.id
LEFT JOIN public.bundles AS b ON b.hash = r.bundle_hash
WHERE
    a.tier = 'strong'
    OR (a.tier = 'cheap' AND (b.hash IS NULL OR (b.body ->> 'threshold' IS NOT NULL AND NOT m.void)));

-- How rows ended. One row a row of a run that ended: an outcome, or (tier NULL) quarantine of a row that could be read.
-- Its USD at list price is what was spent on it, also in vain.
CREATE VIEW views.row_ends AS
SELECT
    o.run_id,
    o.record_key,
    o.tier,
    o.output,
    o.confidence,
    o.escalated,
    o.usd,
    NULL::text AS reason
FROM public.outcomes AS o
UNION ALL
SELECT
    q.run_id,
    q.record_key,
    NULL,
    NULL,
    NULL,
    NULL,
    (
        SELECT coalesce(sum(c.usd), 0) FROM views.answer_prices AS c
        WHERE c.run_id = q.run_id AND c.record_key = q.record_key
    ),
    views.words_shown(q.reason)
FROM public.quarantined AS q
WHERE NOT EXISTS (SELECT FROM public.bad_rows AS b, public.runs AS r
    WHERE r.id = q.run_id AND b.dataset_version = r.dataset_version AND b.key = q.record_key);

-- What tiers said. One row an answer of one tier to one row of a run.
CREATE VIEW views.row_answers AS
SELECT
    a.run_id,
    a.tier,
    a.record_key,
    a.request_hash,
    a.output,
    a.confidence,
    a.reasks,
    a.tokens,
    a.usd,
    a.signal_usd
FROM public.answers AS a;

-- What answers are worth. One row a metric's value for one tier's answer to one row of a run.
CREATE VIEW views.row_scores AS
SELECT
    s.run_id,
    s.record_key,
    s.tier,
    s.metric,
    s.value,
    s.label
FROM public.scores AS s;

-- What rows say. One row a record of a dataset version.
CREATE VIEW views.row_texts AS
SELECT
    d.dataset_version,
    d.key AS record_key,
    d.record_id,
    d.split,
    d.inputs,
    d.gold,
    views.place_shown(d.file) AS file,
    d.line
FROM public.records AS d;

-- What requests of one prompt have in common. One row a request that was answered.
CREATE VIEW views.row_requests AS
SELECT
    c.request_hash,
    f.body,
    f.revision
FROM public.completions AS c
INNER JOIN public.request_frames AS f ON f.hash = c.frame_hash
WHERE c.sample_index = 0;

-- One row a bundle: what is deployed, the run that made it (NULL: imported), and the aliases that point to it.
CREATE VIEW views.bundle_bodies AS
SELECT
    b.hash,
    b.workload,
    b.run_id,
    b.body,
    b.created_at,
    (
        SELECT string_agg(a.alias, ', ' ORDER BY a.alias) FROM public.aliases AS a WHERE a.bundle_hash = b.hash
    ) AS aliases
FROM public.bundles AS b;
