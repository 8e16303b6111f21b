-- One row a row of a run whose final answer was scored by the workload's metric: its quality, and what to slice it by. A
-- row in quarantine (tier NULL) has none that is valid and is worth 0, as in a certificate.
-- Plain tables, each found by its key: of a union the planner would carry out one half as a whole.
CREATE VIEW views.final_scores AS
SELECT
    s.run_id,
    s.record_key,
    o.tier,
    CASE WHEN o.tier IS NULL THEN 0 ELSE s.value END AS value,
    d.split,
    views.place_shown(d.file) AS file,
    d.gold ->> (r.spec ->> 'decisive') AS gold_label,
    o.output ->> (r.spec ->> 'decisive') AS said_label
FROM public.runs AS r
INNER JOIN public.scores AS s ON s.run_id = r.id AND s.metric = r.spec ->> 'metric'
INNER JOIN public.records AS d ON d.dataset_version = r.dataset_version AND d.key = s.record_key
LEFT JOIN public.outcomes AS o ON o.run_id = s.run_id AND o.record_key = s.record_key
WHERE
    s.tier = coalesce(o.tier, 'strong')
    AND (
        o.tier IS NOT NULL
        OR EXISTS (SELECT FROM public.quarantined AS q WHERE q.run_id = s.run_id AND q.record_key = s.record_key)
    );

-- One row an answer of one tier to a row whose label is known: that label, and the one that was said (NULL: none valid).
CREATE VIEW views.labelled_answers AS
SELECT
    a.run_id,
    a.record_key,
    a.tier,
    d.split,
    d.gold ->> (r.spec ->> 'decisive') AS gold_label,
    a.output ->> (r.spec ->> 'decisive') AS said_label
FROM public.answers AS a
INNER JOIN public.runs AS r ON r.id = a.run_id
INNER JOIN public.records AS d ON d.dataset_version = r.dataset_version AND d.key = a.record_key
WHERE d.gold ->> (r.spec ->> 'decisive') IS NOT NULL;

-- One row an answer that a judge looked at: whether the judge, and whether the workload's metric, calls it right.
CREATE VIEW views.judgements AS
SELECT
    j.run_id,
    j.record_key,
    j.tier,
    j.value >= 1 AS judged_right,
    s.value >= 1 AS gold_right
FROM public.scores AS j
INNER JOIN public.runs AS r ON r.id = j.run_id
INNER JOIN public.scores AS s
    ON s.run_id = j.run_id AND s.record_key = j.record_key AND s.tier = j.tier AND s.metric = r.spec ->> 'metric'
WHERE j.metric = 'llm_judge';
