-- One row a row of a run whose final answer was scored by the workload's metric: its quality, and what to slice it by. A
-- row in quarantine (tier NULL) has none that is valid and is worth 0, as in a certificate.
CREATE VIEW views.final_scores AS
SELECT
    e.run_id,
    e.record_key,
    e.tier,
    CASE WHEN e.tier IS NULL THEN 0 ELSE s.value END AS value,
    d.split,
    views.place_shown(d.file) AS file,
    d.gold ->> (r.spec ->> 'decisive') AS gold_label,
    e.output ->> (r.spec ->> 'decisive') AS said_label
FROM views.row_ends AS e
INNER JOIN public.runs AS r ON r.id = e.run_id
INNER JOIN public.scores AS s
    ON
        s.run_id = e.run_id AND s.record_key = e.record_key AND s.tier = coalesce(e.tier, 'strong')
        AND s.metric = r.spec ->> 'metric'
INNER JOIN public.records AS d ON d.dataset_version = r.dataset_version AND d.key = e.record_key;

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
