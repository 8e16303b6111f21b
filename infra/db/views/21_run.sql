-- One row a run: every term of records = outcomes + quarantined + cancelled + pending, counted by itself, and the ways on
-- which its rows went. Kept are the outcomes of the cheap tier, straight those of the strong tier without a cheap answer
-- before, failed the rows that no tier they were sent to could answer.
CREATE VIEW views.run_rows AS
SELECT
    r.id AS run_id,
    (SELECT count(*) FROM public.run_rows AS t WHERE t.run_id = r.id) AS records,
    o.outcomes,
    o.kept,
    o.escalated,
    o.straight,
    q.quarantined,
    q.failed,
    CASE WHEN r.state = 'cancelled' THEN unsettled.n ELSE 0 END AS cancelled,
    CASE WHEN r.state = 'cancelled' THEN 0 ELSE unsettled.n END AS pending
FROM public.runs AS r
CROSS JOIN LATERAL (
    SELECT
        count(*) AS outcomes,
        count(*) FILTER (WHERE t.tier = 'cheap') AS kept,
        count(*) FILTER (WHERE t.tier <> 'cheap' AND t.escalated) AS escalated,
        count(*) FILTER (WHERE t.tier <> 'cheap' AND NOT t.escalated) AS straight
    FROM public.outcomes AS t
    WHERE t.run_id = r.id
) AS o
CROSS JOIN LATERAL (
    SELECT
        count(*) AS quarantined,
        count(*) FILTER (WHERE t.stage = 'validate') AS failed
    FROM public.quarantined AS t
    WHERE t.run_id = r.id
) AS q
CROSS JOIN LATERAL (
    SELECT count(*) AS n
    FROM public.run_rows AS t
    WHERE
        t.run_id = r.id
        AND NOT EXISTS (SELECT 1 FROM public.outcomes AS s WHERE s.run_id = r.id AND s.record_key = t.record_key)
        AND NOT EXISTS (SELECT 1 FROM public.quarantined AS s WHERE s.run_id = r.id AND s.record_key = t.record_key)
) AS unsettled;

-- One row a stage of a run: how far it is, and when it began, in seconds from the run's start. Its seconds last to its
-- last word.
CREATE VIEW views.run_stages AS
SELECT
    p.run_id,
    p.stage,
    p.done,
    p.total,
    p.unit,
    extract(EPOCH FROM p.started_at - r.started_at)::double precision AS began_s,
    extract(EPOCH FROM p.updated_at - p.started_at)::double precision AS seconds
FROM public.progress AS p
INNER JOIN public.runs AS r ON r.id = p.run_id;

-- One row a run, stage, tier, way (paid, or answered by the ledger) and ending of its calls: how many, their tokens and
-- USD at list price (of the ledger's answers: what they spared), and what the last one by its text said of itself.
CREATE VIEW views.run_calls AS
SELECT
    a.run_id,
    a.stage,
    a.tier,
    a.cached,
    a.outcome,
    count(*) AS calls,
    sum(a.prompt_tokens)::bigint AS prompt_tokens,
    sum(a.completion_tokens)::bigint AS completion_tokens,
    sum(a.cached_tokens)::bigint AS prefix_tokens,
    sum(a.usd) AS usd,
    left(max(views.words_shown(a.detail)), 300) AS example
FROM public.attempts AS a
GROUP BY a.run_id, a.stage, a.tier, a.cached, a.outcome;

-- One row a run, tier and bin of the seconds that a paid and answered call for a row took; bins are tenths of a decade,
-- from low_s up to high_s.
CREATE VIEW views.run_latencies AS
SELECT
    b.run_id,
    b.tier,
    power(10, b.bin / 10.0)::double precision AS low_s,
    power(10, (b.bin + 1) / 10.0)::double precision AS high_s,
    b.calls
FROM (
    SELECT
        a.run_id,
        a.tier,
        floor(10 * log(greatest(a.seconds, 0.001)))::integer AS bin,
        count(*) AS calls
    FROM public.attempts AS a
    WHERE NOT a.cached AND a.outcome = 'answered' AND a.stage = 'generate'
    GROUP BY a.run_id, a.tier, 3
) AS b;

-- One row a run and tier: the median and the 95th percentile of these seconds.
CREATE VIEW views.run_latency_quantiles AS
SELECT
    a.run_id,
    a.tier,
    count(*) AS calls,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY a.seconds) AS p50_s,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY a.seconds) AS p95_s
FROM public.attempts AS a
WHERE NOT a.cached AND a.outcome = 'answered' AND a.stage = 'generate'
GROUP BY a.run_id, a.tier;

-- One row a run, tier, kind of tokens and bin of the tokens that an answer to a row took, the ledger's included; bins are
-- quarters of a doubling, from low up to high.
CREATE VIEW views.run_tokens AS
SELECT
    b.run_id,
    b.tier,
    b.kind,
    power(2, b.bin / 4.0)::double precision AS low,
    power(2, (b.bin + 1) / 4.0)::double precision AS high,
    sum(b.answers)::bigint AS answers,
    sum(b.tokens)::bigint AS tokens
FROM (
    SELECT
        a.run_id,
        a.tier,
        k.kind,
        floor(4 * log(2, greatest(k.tokens, 1)::numeric))::integer AS bin,
        count(*) AS answers,
        sum(k.tokens) AS tokens
    FROM public.attempts AS a
    CROSS JOIN LATERAL (VALUES ('prompt', a.prompt_tokens), ('completion', a.completion_tokens)) AS k (kind, tokens)
    WHERE a.outcome = 'answered' AND a.stage = 'generate'
    GROUP BY a.run_id, a.tier, k.kind, k.tokens
) AS b
GROUP BY b.run_id, b.tier, b.kind, b.bin;

-- One row a row in quarantine: where it came from, the stage that gave it up, and why.
CREATE VIEW views.run_quarantine AS
SELECT
    q.run_id,
    q.stage,
    views.place_shown(q.file) AS file,
    q.line,
    q.field,
    views.words_shown(q.reason) AS reason,
    q.record_key
FROM public.quarantined AS q;

-- One row a run and number of re-asks that it took to a tier's last answer: how many rows, and how many of them had no
-- valid answer even then.
CREATE VIEW views.run_reasks AS
SELECT
    a.run_id,
    a.tier,
    a.reasks,
    count(*) AS answers,
    count(*) FILTER (WHERE a.output IS NULL) AS invalid
FROM public.answers AS a
GROUP BY a.run_id, a.tier, a.reasks;
