-- One row a dataset version: where it was read from (without names and queries in addresses), and how many rows it has.
CREATE VIEW views.dataset_versions AS
SELECT
    v.hash AS version,
    views.place_shown(v.uri) AS uri,
    v.records,
    v.bad_rows,
    v.created_at
FROM public.dataset_versions AS v;

-- One row a record of a version: identity, place, right answer, and how long the inputs are (characters of their JSON).
-- The inputs themselves are not here.
CREATE VIEW views.records AS
SELECT
    r.dataset_version AS version,
    r.key,
    r.record_id,
    r.split,
    views.place_shown(r.file) AS file,
    r.line,
    r.gold,
    length(r.inputs::text) AS characters
FROM public.records AS r;

-- One row a row of a version that cannot be used: where it stands and why, without its text.
CREATE VIEW views.bad_rows AS
SELECT
    b.dataset_version AS version,
    views.place_shown(b.file) AS file,
    b.line,
    b.field,
    views.words_shown(b.reason) AS reason
FROM public.bad_rows AS b;

-- One row a run: the field that its workload decides by.
CREATE VIEW views.decisive_fields AS
SELECT
    r.id AS run_id,
    r.workload,
    r.spec ->> 'decisive' AS field
FROM public.runs AS r;

-- One row a row of a run that has a final answer.
CREATE VIEW views.final_answers AS
SELECT
    o.run_id,
    o.record_key,
    o.output
FROM public.outcomes AS o;

-- One row a row of a run whose cheap answer has a confidence, in [0, 1]: what the router looked at.
CREATE VIEW views.cheap_confidences AS
SELECT
    a.run_id,
    a.record_key,
    a.confidence
FROM public.answers AS a
WHERE a.tier = 'cheap' AND a.confidence IS NOT NULL;
